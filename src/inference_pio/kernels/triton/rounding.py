"""Rounding as torch rounds between two operations: what a kernel keeps in float32 takes on the values of a dtype."""

from __future__ import annotations

import triton
import triton.language as tl
from inference_pio.compat import triton_interprets
from triton.language.extra import libdevice

INTERPRETED = tl.constexpr(triton_interprets())


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """`x` (float32) with the nearest values that DTYPE can hold, halves to even."""
    if INTERPRETED and tl.bfloat16 == DTYPE:  # the interpreter's own cast cuts off
        bits = x.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return tl.where(x == x, nearest.to(tl.float32, bitcast=True), x)
    return x.to(DTYPE).to(tl.float32)


@triton.jit
def held(x, DTYPE: tl.constexpr):
    """`x` (float32) rounded to DTYPE, as it is stored."""
    return rounded(x, DTYPE).to(DTYPE)


@triton.jit
def silu(x):
    """SiLU as torch computes it on a GPU: an exponential that is not the fast one, and a division that rounds."""
    if INTERPRETED:  # the interpreter knows no device library
        return x / (1.0 + tl.exp(-x))
    return tl.div_rn(x, 1.0 + libdevice.exp(-x))
