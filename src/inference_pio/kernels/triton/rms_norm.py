"""RMSNorm of rows, alone or after an addition: one program a row. The plain truth is `kernels.rms_norm.naive_rms_norm`.

Only the order of the sum of squares may differ from torch's.
"""

from __future__ import annotations

import torch

import triton
import triton.language as tl
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.triton.launch import norm_warps, on_device
from inference_pio.kernels.triton.rounding import held, rounded
from inference_pio.kernels.triton.row_support import supports_elementwise
from inference_pio.kernels.triton.support import require


@triton.jit
def rms_norm_kernel(
    x, residual, weight, normed, summed, x_step, residual_step, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADDS: tl.constexpr,
):  # fmt: skip
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = columns < WIDTH
    DTYPE: tl.constexpr = normed.dtype.element_ty
    wide = tl.load(x + row * x_step + columns, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        before = tl.load(residual + row * residual_step + columns, mask=inside, other=0.0).to(tl.float32)
        wide = rounded(before + wide, DTYPE)
        tl.store(summed + row * WIDTH + columns, wide.to(DTYPE), mask=inside)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + eps)
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row * WIDTH + columns, held(rounded(wide * scale, DTYPE) * factor, DTYPE), mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of `x` [..., H]. Raises InvalidSetting for tensors that `supports_elementwise` refuses."""
    return _launch(x, None, weight, eps)[0]


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`residual + x`, both [..., H], and its RMSNorm: (normed, summed)."""
    if x.shape != residual.shape:
        raise InvalidSetting(
            f"shapes {tuple(x.shape)} and {tuple(residual.shape)} are not added here: make them equal."
        )
    return _launch(x, residual, weight, eps)


def _launch(x, residual, weight, eps):
    require(supports_elementwise(x, residual, weight))
    width = x.shape[-1]
    if weight.shape != (width,):
        raise InvalidSetting(f"rows of {width} have a weight of as many elements, and not {tuple(weight.shape)}.")
    rows, added = x.reshape(-1, width), None if residual is None else residual.reshape(-1, width)
    normed = torch.empty_like(x, memory_format=torch.contiguous_format)
    summed = None if residual is None else torch.empty_like(normed)
    if rows.numel():
        with on_device(x):
            rms_norm_kernel[(len(rows),)](
                rows, added, weight, normed, summed, rows.stride(0), 0 if added is None else added.stride(0), eps,
                WIDTH=width, BLOCK=triton.next_power_of_2(width), ADDS=added is not None,
                num_warps=norm_warps(width), enable_fp_fusion=False,
            )  # fmt: skip
    return normed, summed
