"""Codes of one byte in a kernel: int8, fp8 (e4m3) on GPUs that make numbers of it, its bits in uint8 on others."""

from __future__ import annotations

import torch

import triton
import triton.language as tl
from inference_pio.compat import triton_interprets
from inference_pio.kernels.triton.launch import device_limits

FIRST_WITH_FP8 = 89
"""The compute capability from which on a GPU makes numbers of fp8, two in one instruction, and fp8 of numbers."""

FROM_FP8 = tl.constexpr(256.0)
"""What a row's scale is multiplied by for fp8 codes: `number` gives them over it."""


@triton.jit
def number(tile):
    """A tile of weights or codes in float32; bits of fp8 over 256: seven of them moved to where float16 has them,
    subnormal codes included, and the sign."""
    if tile.dtype == tl.float8e4nv:
        return tile.to(tl.float16).to(tl.float32)
    elif tile.dtype == tl.uint8:
        bits = tile.to(tl.uint16)
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        return half.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return tile.to(tl.float32)


@triton.jit
def operand(tile, TYPE: tl.constexpr):
    """The same in the type that matrix units take, where all of them are exact."""
    if tile.dtype == tl.uint8 or tile.dtype == tl.float8e4nv:
        return number(tile).to(TYPE)
    else:
        return tile.to(TYPE)


@triton.jit
def row_scale(scale, CODES: tl.constexpr):
    """Scales as loaded, in float32, for codes of a type."""
    scale = scale.to(tl.float32)
    if tl.uint8 == CODES:
        scale = scale * FROM_FP8
    return scale


def as_read(codes: torch.Tensor | None) -> torch.Tensor | None:
    """Weights or codes as a kernel reads them: bits of fp8 as numbers where the GPU knows those."""
    if codes is None or codes.dtype is not torch.uint8 or triton_interprets():
        return codes
    return codes.view(torch.float8_e4m3fn) if device_limits(codes.device).capability >= FIRST_WITH_FP8 else codes
