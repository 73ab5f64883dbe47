"""RMSNorm of rows, its columns in another order: one program a row. The plain truth is `kernels.reordered`'s."""

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
def reordered_norm_kernel(x, weight, order, normed, x_step, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = columns < WIDTH
    DTYPE: tl.constexpr = normed.dtype.element_ty
    wide = tl.load(x + row * x_step + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + eps)
    taken = tl.load(order + columns, mask=inside, other=0)
    factor = tl.load(weight + taken, mask=inside, other=0.0).to(tl.float32)
    wide = tl.load(x + row * x_step + taken, mask=inside, other=0.0).to(tl.float32)  # a few KB, still in the cache
    tl.store(normed + row * WIDTH + columns, held(rounded(wide * scale, DTYPE) * factor, DTYPE), mask=inside)


def reordered_norm(x: torch.Tensor, order: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The columns `order` [H] (int32) of the RMSNorm of `x` [M, H]. Raises InvalidSetting for tensors that
    `supports_elementwise` refuses."""
    require(supports_elementwise(x, weight))
    rows, width = x.shape
    if weight.shape != (width,) or order.shape != (width,) or order.dtype is not torch.int32:
        raise InvalidSetting(
            f"rows of {width} have a weight and an order (int32) of as many elements, and not {tuple(weight.shape)} "
            f"and {tuple(order.shape)} ({order.dtype})."
        )
    normed = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    if normed.numel():
        with on_device(x):
            reordered_norm_kernel[(rows,)](
                x, weight, order, normed, x.stride(0), eps, WIDTH=width, BLOCK=triton.next_power_of_2(width),
                num_warps=norm_warps(width), enable_fp_fusion=False,
            )  # fmt: skip
    return normed
