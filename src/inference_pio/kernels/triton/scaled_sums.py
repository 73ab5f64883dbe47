"""Sums of products of codes, times the scales of tokens and of rows of weights, in one pass over memory.

The plain truth is `kernels.dynamic_linear.naive_scaled_sums`.
"""

from __future__ import annotations

import torch

import triton
import triton.language as tl
from inference_pio.kernels.triton.launch import on_device
from inference_pio.kernels.triton.support import ELEMENTWISE_DTYPES, Cause, Support, require, supports_device

COLUMNS = 1024
"""Of a program: loads of 16 bytes for 4 warps, twice."""


@triton.jit
def scaled_sums_kernel(sums, of_tokens, scale, out, columns, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    found = tl.load(sums + row * columns + column, mask=inside, other=0).to(tl.float32) * tl.load(of_tokens + row)
    found *= tl.load(scale + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * columns + column, found.to(out.dtype.element_ty), mask=inside)


def supports_scaled_sums(sums: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> Support:
    """Whether the kernel scales int32 `sums` [M, N] by scales [N] into a dtype."""
    if dtype not in ELEMENTWISE_DTYPES or scale.dtype not in ELEMENTWISE_DTYPES:
        return Support(Cause.DTYPE, f"it is for bfloat16, float16 or float32, not {dtype} and scales in {scale.dtype}")
    if not sums.is_contiguous() or not scale.is_contiguous():
        return Support(Cause.LAYOUT, "sums or scales do not lie side by side")
    return supports_device(sums.device)


def scaled_sums(sums: torch.Tensor, of_tokens: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`sums` [M, N] in int32 times float32 `of_tokens` [M] or [M, 1] and `scale` [N], in a dtype.

    Raises InvalidSetting for tensors that `supports_scaled_sums` refuses.
    """
    require(supports_scaled_sums(sums, scale, dtype))
    out = torch.empty(sums.shape, dtype=dtype, device=sums.device)
    if out.numel():
        with on_device(sums):
            scaled_sums_kernel[(len(sums), triton.cdiv(sums.shape[1], COLUMNS))](
                sums, of_tokens.contiguous(), scale, out, sums.shape[1], BLOCK=COLUMNS, num_warps=4
            )
    return out
