"""fp8 weights (e4m3) with one bfloat16 scale a row: quantize, multiply, dequantize; the plain truth first.

Codes are held as uint8: a float8 tensor cannot be pickled, and `half()` takes it for one that may be rounded.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from inference_pio.compat import has_fast_bfloat16_matmul
from inference_pio.kernels.few_coded_rows import few_coded_rows, runs_few_coded_rows
from inference_pio.kernels.frozen_weights import cast, frozen_linear

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
BLOCK_ELEMENTS = 2**20
# The bits of an e4m3 code, moved to where bfloat16 has them, are its value over 2**120, subnormal codes included.
SIGN_AND_VALUE = -0x7810
SHIFT_IN_POWERS = 2.0**120


def naive_fp8_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` [..., K] times fp8 rows [N, K] with their scales [N], in float32 from its definition: [..., N]."""
    weight = codes.view(FP8).float() * scale.float()[:, None]
    return F.linear(x.float(), weight, None if bias is None else bias.float()).to(x.dtype)


@torch.no_grad()
def quantize_rows_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (the bits of e4m3 in uint8, shape of `weight`) and scales (bfloat16, without the last dimension).

    A row's largest weight gets the largest code, 448. Codes are rounded against the scale as bfloat16 holds it.
    Weights on the meta device give codes on the meta device.

    >>> codes, scale = quantize_rows_fp8(torch.tensor([[896.0, -448.0, 3.0], [0.0, 0.0, 0.0]]))
    >>> codes.view(FP8).float().tolist(), scale.tolist()
    ([[448.0, -224.0, 1.5], [0.0, 0.0, 0.0]], [2.0, 1.0])
    """
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    scale = torch.empty(weight.shape[:-1], dtype=torch.bfloat16, device=weight.device)
    if weight.is_meta:  # a plan needs shapes alone; each operation on them costs what one on numbers does
        return codes, scale
    matrices = [(weight, codes, scale)] if weight.dim() == 2 else zip(weight, codes, scale, strict=True)
    for matrix, held, scales in matrices:
        for rows in _blocks(matrix):
            part = matrix[rows].float()
            scales[rows] = scale_of(part)
            held[rows] = round_to_fp8(part, scales[rows])
    return codes, scale


def _blocks(matrix: Tensor) -> Iterator[slice]:
    rows = max(1, BLOCK_ELEMENTS // max(1, matrix.shape[-1]))
    return (slice(start, start + rows) for start in range(0, matrix.shape[0], rows))


def scale_of(rows: Tensor) -> Tensor:
    """The scale, bfloat16 [...], of rows [..., K]; 1 for rows of nothing."""
    if rows.shape[-1] == 0:
        return rows.new_ones(rows.shape[:-1], dtype=torch.bfloat16)
    scale = (rows.abs().amax(-1) / LARGEST).bfloat16()
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def round_to_fp8(rows: Tensor, scale: Tensor) -> Tensor:
    """The nearest codes of rows [..., K] with scales [...]."""
    return (rows / scale.float()[..., None]).clamp_(-LARGEST, LARGEST).to(FP8).view(torch.uint8)


def dequantize_rows_fp8(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights that codes and scales stand for; exact in float32, rounded once in 16 bits."""
    return (bare(codes, torch.float32).mul_(scale.float()[..., None])).to(dtype)


def bare(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes without their scales, exact in every dtype of 16 bits or more.

    >>> positive = torch.arange(127, dtype=torch.uint8)
    >>> torch.equal(bare(positive, torch.bfloat16), positive.view(FP8).bfloat16())
    True
    """
    if codes.device.type != "cpu":
        return codes.view(FP8).to(dtype)
    # torch converts one code after another (1536 x 576: 2.7 ms; so 0.2)
    bits = codes.view(torch.int8).to(torch.int16).bitwise_left_shift_(4).bitwise_and_(SIGN_AND_VALUE)
    return cast(bits.view(torch.bfloat16) * SHIFT_IN_POWERS, dtype)


@torch.compiler.assume_constant_result
def choose_fp8_backend(device: torch.device, dtype: torch.dtype) -> str:
    """What multiplies fp8 weights for activations of a dtype on a device: said in receipts, decided here alone.

    "cpu-fp8cast": codes cast block by block, products scaled. "triton", on GPUs that run it: our kernel for few rows,
    and for more, weights in the activations' dtype. "dequantize": such weights always.
    """
    if device.type == "cpu":
        return "cpu-fp8cast" if dtype is not torch.float64 else "dequantize"
    return "triton" if runs_few_coded_rows(device, dtype) else "dequantize"


def fp8_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` [..., K] times fp8 rows [N, K] with bfloat16 scales [N]: [..., N] in the dtype of `x`.

    Gradients flow to `x` and `bias`; codes and scales are frozen.
    """
    return frozen_linear(x, codes, scale, bias, _product, dequantize_rows_fp8)


def _product(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    backend = choose_fp8_backend(x.device, x.dtype)
    if backend == "triton" and (found := few_coded_rows(x, codes, scale)) is not None:
        return found
    if backend != "cpu-fp8cast":
        return F.linear(x, dequantize_rows_fp8(codes, scale, x.dtype))
    rows = cast(x, _matrix_dtype())
    parts = [F.linear(rows, bare(codes[block], rows.dtype)) for block in _blocks(codes)]
    y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    return cast(y.mul_(scale), x.dtype)


@torch.compiler.assume_constant_result
def _matrix_dtype() -> torch.dtype:
    return torch.bfloat16 if has_fast_bfloat16_matmul() else torch.float32
