"""Activations in eight bits in one launch, a token a program. The plain truth is `token_codes.naive_code_tokens`."""

from __future__ import annotations

import torch

import triton
import triton.language as tl
from inference_pio.kernels.token_codes import LARGEST_OF
from inference_pio.kernels.triton.launch import device_limits, on_device
from inference_pio.kernels.triton.row_codes import FIRST_WITH_FP8
from inference_pio.kernels.triton.support import ELEMENTWISE_DTYPES, Cause, Support, require, supports_device

ROUNDING: tl.constexpr = tl.constexpr(12582912.0)
"""1.5 * 2**23: what is added to a small number and taken away again rounds it to a whole one, halves to even."""
COLUMNS_OF_A_WARP = 1024
MOST_WARPS = 16
MOST_INPUTS = 32768


@triton.jit
def token_codes_kernel(x, codes, scales, x_step, inputs, LARGEST: tl.constexpr, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = column < inputs
    vector = tl.load(x + row * x_step + column, mask=inside, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(vector), 0)
    scale = tl.div_rn(largest, LARGEST)
    scale = tl.where(scale == 0.0, 1.0, scale)
    found = tl.minimum(tl.maximum(tl.div_rn(vector, tl.broadcast_to(scale, [BLOCK])), -LARGEST), LARGEST)
    if codes.dtype.element_ty == tl.int8:
        found = (found + ROUNDING) - ROUNDING
    tl.store(codes + row * inputs + column, found.to(codes.dtype.element_ty), mask=inside)
    # a token with a number that is none keeps that in its scale, and so in all of its products
    tl.store(scales + row, tl.sum(tl.where(vector == vector, 0.0, vector), 0) + scale)


def supports_token_codes(x: torch.Tensor, kind: torch.dtype) -> Support:
    """Whether the kernel codes `x` [M, K] in a kind."""
    if x.dtype not in ELEMENTWISE_DTYPES:
        return Support(Cause.DTYPE, f"it is for bfloat16, float16 or float32, and x is {x.dtype}")
    if x.dim() != 2 or not 1 <= x.shape[1] <= MOST_INPUTS:
        return Support(Cause.SHAPE, f"it is for [tokens, 1 to {MOST_INPUTS} inputs], and x is {tuple(x.shape)}")
    if x.stride(1) != 1 and x.shape[1] != 1:
        return Support(Cause.LAYOUT, "the numbers of a token do not lie side by side")
    if torch.is_grad_enabled() and x.requires_grad:
        return Support(Cause.GRADIENT, "it has no backward pass")
    if kind is not torch.int8 and x.is_cuda and device_limits(x.device).capability < FIRST_WITH_FP8:
        return Support(Cause.DEVICE, "this GPU does not make fp8 of numbers")
    return supports_device(x.device)


def code_tokens(x: torch.Tensor, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [M, K] of a kind and float32 scales [M] of `x` [M, K].

    Raises InvalidSetting for tensors that `supports_token_codes` refuses.
    """
    require(supports_token_codes(x, kind))
    codes = torch.empty(x.shape, dtype=kind, device=x.device)
    scales = torch.empty(len(x), dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(x.shape[1])
    warps = min(MOST_WARPS, max(1, block // COLUMNS_OF_A_WARP))
    if len(x):
        with on_device(x):
            token_codes_kernel[(len(x),)](
                x, codes, scales, x.stride(0), x.shape[1], LARGEST=LARGEST_OF[kind], BLOCK=block, num_warps=warps,
                enable_fp_fusion=False,
            )  # fmt: skip
    return codes, scales
