"""int8 weights with one bfloat16 scale a row: quantize, multiply, dequantize; the plain truth first."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from inference_pio.compat import (
    PACKED_COLUMNS,
    has_fast_bfloat16_matmul,
    has_int8_packed_matmul,
    int8_packed_matmul,
)
from inference_pio.kernels.few_coded_rows import few_coded_rows, runs_few_coded_rows
from inference_pio.kernels.frozen_weights import cast, frozen_linear

LARGEST_CODE = 127
# Up to this many rows the packed matmul wins (576 x 576: 65 us against 82 at 8 rows, 103 against 94 at 16).
PACKED_ROWS = 8
# Weights are worked on in blocks of this size: a temporary above glibc's 32 MB limit is paged in anew at each call
# (4096 x 4096 at 16 rows: 15.3 ms with one temporary for all, 4.4 ms with one that is used again).
BLOCK_ELEMENTS = 4 * 2**20
CPU_DTYPES = (torch.bfloat16, torch.float32, torch.float16)

_CHOSEN: dict[tuple[torch.device, torch.dtype], str] = {}


def naive_int8_linear(
    x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`x` [..., K] times int8 rows [N, K] with their scales [N], in float32 from its definition: [..., N]."""
    weight = q.float() * scale.float()[:, None]
    return F.linear(x.float(), weight, None if bias is None else bias.float()).to(x.dtype)


@torch.no_grad()
def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (int8, shape of `weight`) and scales (bfloat16, without the last dimension) of [N, K] or [E, N, K].

    Symmetric: a row's largest weight gets code 127. Codes are rounded against the scale as bfloat16 holds it, so
    keeping it in 16 bits loses nothing. Weights on the meta device give codes on the meta device.

    >>> q, scale = quantize_rows(torch.tensor([[254.0, -127.0, 3.0], [0.0, 0.0, 0.0]]))
    >>> q.tolist(), scale.tolist()
    ([[127, -64, 2], [0, 0, 0]], [2.0, 1.0])
    """
    q = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(weight.shape[:-1], dtype=torch.bfloat16, device=weight.device)
    if weight.is_meta:  # a plan needs shapes alone; each operation on them costs what one on numbers does
        return q, scale
    matrices = [(weight, q, scale)] if weight.dim() == 2 else zip(weight, q, scale, strict=True)
    block = max(1, BLOCK_ELEMENTS // max(1, weight.shape[-1]))
    for matrix, codes, scales in matrices:
        for start in range(0, matrix.shape[0], block):
            rows = slice(start, start + block)
            codes[rows], scales[rows] = _quantize_block(matrix[rows].float())
    return q, scale


def _quantize_block(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = scale_of(rows)
    return round_to_scale(rows, scale).to(torch.int8), scale


def scale_of(rows: torch.Tensor) -> torch.Tensor:
    """The scales, bfloat16 [...], of rows [..., K]; 1 for rows of nothing."""
    if rows.shape[-1] == 0:
        return rows.new_ones(rows.shape[:-1], dtype=torch.bfloat16)
    scale = (rows.abs().amax(-1) / LARGEST_CODE).bfloat16()
    return torch.where(scale == 0, torch.ones_like(scale), scale)  # all zero, or too small to be held


def round_to_scale(rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The nearest codes, as whole numbers in float32, of rows [..., K] with scales [...]."""
    return (rows / scale.float()[..., None]).round_().clamp_(-LARGEST_CODE, LARGEST_CODE)


def dequantize_rows(q: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weights that codes and scales stand for; exact in float32, rounded once in 16 bits."""
    if dtype is torch.float16:  # a small scale is held by bfloat16 but not by float16
        return (q.float() * scale.float()[..., None]).to(dtype)
    return q.to(dtype).mul_(scale.to(dtype)[..., None])


@torch.compiler.assume_constant_result
def choose_int8_backend(device: torch.device, dtype: torch.dtype) -> str:
    """What multiplies int8 weights for activations of a dtype on a device: said in receipts, decided here alone.

    "cpu-int8pack": bfloat16 inside whatever the activations are; torch's packed matmul reads the codes for few rows,
    many rows are multiplied with codes cast block by block. "triton", on GPUs that run it: our kernel for few rows, and
    for more, weights in the activations' dtype. "dequantize": such weights always.
    """
    chosen = _CHOSEN.get((device, dtype))
    if chosen is None:
        packed = device.type == "cpu" and dtype in CPU_DTYPES and has_int8_packed_matmul()
        ours = runs_few_coded_rows(device, dtype)
        chosen = _CHOSEN[device, dtype] = "cpu-int8pack" if packed else "triton" if ours else "dequantize"
    return chosen


def int8_linear(
    x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`x` [..., K] times int8 rows [N, K] with bfloat16 scales [N]: [..., N] in the dtype of `x`.

    Gradients flow to `x` and `bias`; codes and scales are frozen.
    """
    return frozen_linear(x, q, scale, bias, _product, dequantize_rows)


def _product(x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    backend = choose_int8_backend(x.device, x.dtype)
    if backend == "triton" and (found := few_coded_rows(x, q, scale)) is not None:
        return found
    if backend != "cpu-int8pack":
        return F.linear(x, dequantize_rows(q, scale, x.dtype))
    shape = x.shape
    columns = shape[-1]
    rows = x if len(shape) == 2 else x.reshape(-1, columns)
    if x.numel() <= PACKED_ROWS * columns and columns % PACKED_COLUMNS == 0:  # decode: a call is 2 us of Python
        y = int8_packed_matmul(cast(rows, torch.bfloat16).contiguous(), q, scale)
    else:  # prefill
        y = _cast_product(cast(rows, _matrix_dtype()), q).mul_(scale)
    y = cast(y, x.dtype)
    return y if len(shape) == 2 else y.view((*shape[:-1], q.shape[0]))


@torch.compiler.assume_constant_result
def _matrix_dtype() -> torch.dtype:
    return torch.bfloat16 if has_fast_bfloat16_matmul() else torch.float32


def _cast_product(rows: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Rows times bare codes: an int8 is exact in bfloat16, and scaling the few results is cheaper than all weights."""
    block = max(1, BLOCK_ELEMENTS // max(1, q.shape[1]))
    if q.shape[0] <= block:
        return F.linear(rows, q.to(rows.dtype))
    out, codes = rows.new_empty(rows.shape[0], q.shape[0]), rows.new_empty(block, q.shape[1])
    for start in range(0, q.shape[0], block):
        part = q[start : start + block]
        out[:, start : start + block] = F.linear(rows, codes[: part.shape[0]].copy_(part))
    return out
