"""Products of activations in eight bits, coded token by token, with weights in eight bits; the plain truth first."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from inference_pio.compat import fp8_matmul, has_fast_int8_matmul, has_fp8_matmul, has_triton
from inference_pio.kernels.fp8 import FP8
from inference_pio.kernels.frozen_weights import frozen_linear
from inference_pio.kernels.row_codes import bare_values, scaled_values
from inference_pio.kernels.token_codes import code_tokens, naive_code_tokens

KINDS = {torch.int8: torch.int8, torch.uint8: FP8}
"""What activations become beside weights of a dtype; fp8 weights are held as their bits."""
INT8, SCALED, NAIVE = "int8-matmul", "fp8-matmul", "none"
FEWEST_ROWS = 17
"""Rows below which the time goes into reading weights; torch's int8 product on a GPU takes 17 or more."""
STEP = 16
"""What inputs and outputs are a multiple of, for matrix units to take them."""
BLOCK_ELEMENTS = 2**22
"""Sums that are scaled at a time, as int32 and float32: 16 MB of each on a CPU, where larger ones are paged in anew."""


def naive_dynamic_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` [..., K], coded by token, times codes [N, K] with scales [N], in float64 from its definition: [..., N]."""
    rows, of_tokens = naive_code_tokens(x.reshape(-1, x.shape[-1]), KINDS[codes.dtype])
    sums = F.linear(rows.double(), bare_values(codes).double())
    found = sums * of_tokens.double()[:, None] * scale.double()
    found = found if bias is None else found + bias.double()
    return found.to(x.dtype).view(*x.shape[:-1], len(codes))


@torch.compiler.assume_constant_result
def choose_dynamic_backend(device: torch.device, kind: torch.dtype) -> str:
    """What multiplies activations of a kind with weights of it: torch's int8 product, its fp8 one, or none."""
    if kind is torch.int8:
        return INT8 if has_fast_int8_matmul(device) else NAIVE
    return SCALED if has_fp8_matmul(device) else NAIVE


def why_not_dynamic(device: torch.device, kind: torch.dtype) -> str | None:
    """Why activations of a kind are not multiplied on a device, and the way out; None where they are."""
    if choose_dynamic_backend(device, kind) != NAIVE:
        return None
    if kind is torch.int8:
        return "this CPU has no instructions for products of int8 (VNNI): leave activations as they are"
    return "products of fp8 need an NVIDIA GPU of compute capability 8.9 or more: leave activations as they are"


def serves_dynamic(x: Tensor, codes: Tensor) -> bool:
    """Whether these are multiplied so: rows enough to be worth it, of sizes that matrix units take."""
    return (
        x.numel() >= FEWEST_ROWS * x.shape[-1] > 0
        and x.shape[-1] == codes.shape[-1]
        and not (x.shape[-1] % STEP or len(codes) % STEP)
        and x.dtype is not torch.float64
        and choose_dynamic_backend(x.device, KINDS[codes.dtype]) != NAIVE
    )


def dynamic_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` [..., K] times codes of weights [N, K] with their scales [N]: [..., N] in the dtype of `x`.

    Gradients flow to `x`, as if it had not been coded, and to `bias`.
    """
    return frozen_linear(x, codes, scale, bias, _product, scaled_values)


def _product(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    kind, rows = KINDS[codes.dtype], x.reshape(-1, x.shape[-1])
    coded, of_tokens = code_tokens(rows, kind)
    if choose_dynamic_backend(x.device, kind) == SCALED:
        found = fp8_matmul(coded, codes.view(FP8).t(), of_tokens[:, None], scale.float()[None])
    else:
        found = _whole_numbers(coded, codes, of_tokens[:, None], scale, x.dtype)
    return found.to(x.dtype).view(*x.shape[:-1], len(codes))


def _whole_numbers(rows: Tensor, codes: Tensor, of_tokens: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums in int32, which are exact, then both scales; many rows a block at a time."""
    block = max(FEWEST_ROWS, BLOCK_ELEMENTS // len(codes)) if rows.device.type == "cpu" else max(1, len(rows))
    starts = range(0, max(1, len(rows)), block)
    parts = [_scaled_sums(rows[at : at + block], codes, of_tokens[at : at + block], scale, dtype) for at in starts]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _scaled_sums(rows: Tensor, codes: Tensor, of_tokens: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    sums = torch._int_mm(_at_least(rows), codes.t())[: len(rows)]
    if sums.is_cuda and has_triton() and not torch.compiler.is_compiling():
        from inference_pio.kernels.triton.scaled_sums import scaled_sums, supports_scaled_sums

        if supports_scaled_sums(sums, scale, dtype):
            return scaled_sums(sums, of_tokens, scale, dtype)
    return naive_scaled_sums(sums, of_tokens, scale, dtype)


def naive_scaled_sums(sums: Tensor, of_tokens: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums [M, N] in int32 times the scales of tokens [M, 1] and of rows of weights [N], in a dtype."""
    return torch.mul(sums, of_tokens).mul_(scale).to(dtype)


def _at_least(rows: Tensor) -> Tensor:
    return rows if len(rows) >= FEWEST_ROWS else F.pad(rows, (0, 0, 0, FEWEST_ROWS - len(rows)))
