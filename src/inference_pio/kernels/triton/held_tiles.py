"""Words of codes as matrix units take them, without moving anything between threads.

A thread of a warp reads four neighbouring words of a row, 16 bytes, and the units want of it numbers of other columns:
but any order of the inputs serves, as long as x has the same. So each code stays in the thread that has read it, and
becomes a number by its bits: bfloat16, of half a byte 128 more than it is, of fp8 (e4m3) 2**120 times less.
"""

from __future__ import annotations

import triton
import triton.language as tl
from inference_pio.kernels.triton.group_units import NARROW, WORDS, planes

NIBBLES, FP8 = tl.constexpr(8), tl.constexpr(4)
"""Kinds of weights, by the codes of a word."""


@triton.jit
def by_lanes(words, GROUPS: tl.constexpr, ROWS: tl.constexpr):
    """Words [GROUPS, ROWS, 16], of each four the first two in front and the others in the second half."""
    words = tl.permute(tl.reshape(words, [GROUPS, ROWS, 4, 2, 2]), (0, 1, 3, 2, 4))
    return tl.reshape(words, [GROUPS, ROWS, WORDS])


@triton.jit
def half_of_nibbles(words, GROUPS: tl.constexpr, ROWS: tl.constexpr, INTERPRETED: tl.constexpr):
    """Codes of half a byte [GROUPS, ROWS, 128], each plus 128."""
    p0, p1, p2, p3, p4, p5, p6, p7 = planes(by_lanes(words, GROUPS, ROWS), GROUPS, ROWS, INTERPRETED)
    even = tl.join(tl.join(p0, p4), tl.join(p2, p6))
    odd = tl.join(tl.join(p1, p5), tl.join(p3, p7))
    # half, lane, which of a pair; then word, pair in two bits
    tile = tl.reshape(tl.join(even, odd), [GROUPS, ROWS, 2, 4, 2, 2, 2, 2])
    return tl.reshape(tl.permute(tile, (0, 1, 5, 7, 2, 3, 6, 4)), [GROUPS, ROWS, 8 * WORDS])


@triton.jit
def fp8_planes(words, GROUPS: tl.constexpr, ROWS: tl.constexpr, INTERPRETED: tl.constexpr):
    """Four tensors [GROUPS, ROWS, 16] of codes over 2**120: the first and third of every even word, the second and
    fourth of it, and the same of every odd word."""
    if INTERPRETED:
        even, odd = tl.split(tl.reshape(words, [GROUPS, ROWS, WORDS // 2, 2]))
        return (
            fp8_pair(even, 0, GROUPS, ROWS), fp8_pair(even, 8, GROUPS, ROWS), fp8_pair(odd, 0, GROUPS, ROWS),
            fp8_pair(odd, 8, GROUPS, ROWS),
        )  # fmt: skip
    else:
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 moved, sign;
            shl.b32 moved, $4, 4;
            shl.b32 sign, $4, 8;
            and.b32 sign, sign, 0x80008000;
            lop3.b32 $0, moved, 0x07F007F0, sign, 0xEA;
            shr.u32 moved, $4, 4;
            and.b32 sign, $4, 0x80008000;
            lop3.b32 $1, moved, 0x07F007F0, sign, 0xEA;
            shl.b32 moved, $5, 4;
            shl.b32 sign, $5, 8;
            and.b32 sign, sign, 0x80008000;
            lop3.b32 $2, moved, 0x07F007F0, sign, 0xEA;
            shr.u32 moved, $5, 4;
            and.b32 sign, $5, 0x80008000;
            lop3.b32 $3, moved, 0x07F007F0, sign, 0xEA;
            }
            """,
            "=&r,=&r,=&r,=&r,r,r", [words], dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True,
            pack=2,
        )  # fmt: skip


@triton.jit
def fp8_pair(words, shift: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr):
    """Two codes of each word [GROUPS, ROWS, 8] side by side, without a GPU's instructions."""
    return tl.reshape(tl.join(fp8_number(words >> shift), fp8_number(words >> (shift + 16))), [GROUPS, ROWS, WORDS])


@triton.jit
def fp8_number(bits):
    return (((bits & 0x80) << 24) | ((bits & 0x7F) << 20)).to(tl.float32, bitcast=True)


@triton.jit
def half_of_fp8(words, GROUPS: tl.constexpr, ROWS: tl.constexpr, INTERPRETED: tl.constexpr):
    """Codes of fp8 [GROUPS, ROWS, 64] over 2**120."""
    p0, p1, p2, p3 = fp8_planes(by_lanes(words, GROUPS, ROWS), GROUPS, ROWS, INTERPRETED)
    # half, lane, which of a pair; then word, pair
    tile = tl.reshape(tl.join(tl.join(p0, p2), tl.join(p1, p3)), [GROUPS, ROWS, 2, 4, 2, 2, 2])
    return tl.reshape(tl.permute(tile, (0, 1, 5, 2, 3, 6, 4)), [GROUPS, ROWS, 4 * WORDS])


@triton.jit
def held_tile(low, high, GROUPS: tl.constexpr, ROWS: tl.constexpr, CODES: tl.constexpr, INTERPRETED: tl.constexpr):
    """The tall matrix [GROUPS, 2 * ROWS, 16 * CODES] of the words [GROUPS, ROWS, 16] of its rows in two halves."""
    if CODES == NIBBLES:
        low, high = half_of_nibbles(low, GROUPS, ROWS, INTERPRETED), half_of_nibbles(high, GROUPS, ROWS, INTERPRETED)
    else:
        low, high = half_of_fp8(low, GROUPS, ROWS, INTERPRETED), half_of_fp8(high, GROUPS, ROWS, INTERPRETED)
    return tl.reshape(tl.permute(tl.join(low, high), (0, 3, 1, 2)), [GROUPS, 2 * ROWS, WORDS * CODES])


@triton.jit
def in_their_order(x, GROUPS: tl.constexpr, MEMBERS: tl.constexpr, CODES: tl.constexpr):
    """x [GROUPS, MEMBERS, 16 * CODES] in the order of `held_tile`, as the narrow matrix [GROUPS, 16 * CODES, 8], the
    members again and again."""
    # four words of a lane as halves of two, then the codes of a word
    if CODES == NIBBLES:
        x = tl.permute(tl.reshape(x, [GROUPS, MEMBERS, 4, 2, 2, 2, 2, 2]), (0, 4, 6, 3, 2, 5, 7, 1))
    else:
        x = tl.permute(tl.reshape(x, [GROUPS, MEMBERS, 4, 2, 2, 2, 2]), (0, 4, 3, 2, 6, 5, 1))
    x = tl.reshape(x, [GROUPS, WORDS * CODES, MEMBERS])
    if MEMBERS < NARROW:
        x = tl.broadcast_to(x[:, :, None, :], [GROUPS, WORDS * CODES, NARROW // MEMBERS, MEMBERS])
        x = tl.reshape(x, [GROUPS, WORDS * CODES, NARROW])
    return x
