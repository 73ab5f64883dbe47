"""Codes of one byte in a kernel: int8, or the bits of fp8 (e4m3) in uint8, which GPUs before sm_89 cannot convert."""

from __future__ import annotations

import triton
import triton.language as tl

FROM_FP8 = tl.constexpr(256.0)
"""What a row's scale is multiplied by for fp8 codes: `number` gives them over it."""


@triton.jit
def number(tile):
    """A tile of weights or codes in float32; fp8 codes over 256: seven bits moved to where float16 has them, subnormal
    codes included, and the sign."""
    if tile.dtype == tl.uint8:
        bits = tile.to(tl.uint16)
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        return half.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return tile.to(tl.float32)


@triton.jit
def operand(tile, TYPE: tl.constexpr):
    """The same in the type that matrix units take, where all of them are exact."""
    if tile.dtype == tl.uint8:
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
