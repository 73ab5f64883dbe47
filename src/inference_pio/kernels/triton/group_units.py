"""Weights of half a byte in groups, times a few rows, by the matrix units: each warp takes groups of its own.

Words come to the units' own layout before they are unpacked, so that what travels through shared memory is half a byte
a weight. A code becomes a number by its bits, 128 more than it is: two at a time, one instruction each. Products with
ones give what x sums up to in the same layout; step and middle of a group then make of both what its codes stand for.
"""

from __future__ import annotations

import triton
import triton.language as tl
from inference_pio.kernels.triton.group_codes import ABOVE_MIDDLE, nibbles
from inference_pio.kernels.triton.overlap import wait_for_others

WORDS = tl.constexpr(16)
"""Words of a row that a warp takes in one step: 128 codes, a whole group."""
NARROW = tl.constexpr(8)
"""Columns of x that the units take at least."""


@triton.jit
def planes(words, INTERPRETED: tl.constexpr):
    """Eight tensors: the first codes of all words, the second ones, and so on, each code plus 128."""
    if INTERPRETED:
        return nibbles(words)
    else:
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 pair, upper;
            prmt.b32 pair, $8, $9, 0x0400;
            lop3.b32 $0, pair, 0x000F000F, 0x43004300, 0xEA;
            shr.u32 upper, pair, 4;
            lop3.b32 $4, upper, 0x000F000F, 0x43004300, 0xEA;
            prmt.b32 pair, $8, $9, 0x0501;
            lop3.b32 $1, pair, 0x000F000F, 0x43004300, 0xEA;
            shr.u32 upper, pair, 4;
            lop3.b32 $5, upper, 0x000F000F, 0x43004300, 0xEA;
            prmt.b32 pair, $8, $9, 0x0602;
            lop3.b32 $2, pair, 0x000F000F, 0x43004300, 0xEA;
            shr.u32 upper, pair, 4;
            lop3.b32 $6, upper, 0x000F000F, 0x43004300, 0xEA;
            prmt.b32 pair, $8, $9, 0x0703;
            lop3.b32 $3, pair, 0x000F000F, 0x43004300, 0xEA;
            shr.u32 upper, pair, 4;
            lop3.b32 $7, upper, 0x000F000F, 0x43004300, 0xEA;
            }
            """,
            "=r,=r,=r,=r,=r,=r,=r,=r,r,r", [words],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16,
                   tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True, pack=2,
        )  # fmt: skip


@triton.jit
def narrow(x, WARPS: tl.constexpr, MEMBERS: tl.constexpr):
    """[WARPS, MEMBERS, WORDS] as the units' narrow matrix [WARPS, WORDS, 8], the members again and again."""
    x = tl.permute(x, (0, 2, 1))
    if MEMBERS < NARROW:
        x = tl.broadcast_to(x[:, :, None, :], [WARPS, WORDS, NARROW // MEMBERS, MEMBERS])
        x = tl.reshape(x, [WARPS, WORDS, NARROW])
    return x


@triton.jit
def eighths(x, WARPS: tl.constexpr, MEMBERS: tl.constexpr):
    """What goes with each of the eight planes, of x [WARPS, MEMBERS, WORDS, 8]."""
    first, second = tl.split(tl.permute(tl.reshape(x, [WARPS, MEMBERS, WORDS, 2, 4]), (0, 1, 2, 4, 3)))
    a, b = tl.split(tl.permute(tl.reshape(first, [WARPS, MEMBERS, WORDS, 2, 2]), (0, 1, 2, 4, 3)))
    c, d = tl.split(tl.permute(tl.reshape(second, [WARPS, MEMBERS, WORDS, 2, 2]), (0, 1, 2, 4, 3)))
    x0, x1 = tl.split(a)
    x2, x3 = tl.split(b)
    x4, x5 = tl.split(c)
    x6, x7 = tl.split(d)
    return (
        narrow(x0, WARPS, MEMBERS), narrow(x1, WARPS, MEMBERS), narrow(x2, WARPS, MEMBERS), narrow(x3, WARPS, MEMBERS),
        narrow(x4, WARPS, MEMBERS), narrow(x5, WARPS, MEMBERS), narrow(x6, WARPS, MEMBERS), narrow(x7, WARPS, MEMBERS),
    )  # fmt: skip


@triton.jit
def eight_products(p0, p1, p2, p3, p4, p5, p6, p7, x0, x1, x2, x3, x4, x5, x6, x7):
    found = tl.dot(p0, x0)
    found = tl.dot(p1, x1, found)
    found = tl.dot(p2, x2, found)
    found = tl.dot(p3, x3, found)
    found = tl.dot(p4, x4, found)
    found = tl.dot(p5, x5, found)
    found = tl.dot(p6, x6, found)
    return tl.dot(p7, x7, found)


@triton.jit
def in_grids(found, given, grid):
    """What products with bare codes stand for, where `given` is what x sums up to."""
    step = (grid << 16).to(tl.float32, bitcast=True)
    middle = ((grid >> 16) << 16).to(tl.float32, bitcast=True)
    return step[:, :, None] * found + (middle - ABOVE_MIDDLE * step)[:, :, None] * given


@triton.jit
def read(places, here, EVEN: tl.constexpr, OFTEN: tl.constexpr):
    if EVEN:
        return tl.load(places, eviction_policy="evict_last" if OFTEN else "evict_first")
    return tl.load(places, mask=here, other=0, eviction_policy="evict_last" if OFTEN else "evict_first")


@triton.jit
def sums_by_group_units(
    x, norm_weight, places, up_places, grids, up_grids, residual_places, stored, x_step, inputs, grid_step,
    up_grid_step, COUNT: tl.constexpr, MEMBERS: tl.constexpr, ROWS: tl.constexpr, WARPS: tl.constexpr,
    EVEN: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr, ADDED: tl.constexpr, DEPENDENT: tl.constexpr,
    STAGES: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Products [8, ROWS] with one or two weights, sums of squares of x, residual: `STAGES` groups are on their way."""
    TYPE: tl.constexpr = tl.float32 if INTERPRETED else tl.bfloat16  # the interpreter multiplies the bits of bfloat16
    GROUP: tl.constexpr = 8 * WORDS
    warp, word, eighth = tl.arange(0, WARPS), tl.arange(0, WORDS), tl.arange(0, 8)
    member = tl.minimum(tl.arange(0, MEMBERS), COUNT - 1)
    words = warp[:, None, None] * WORDS + word[None, None, :]
    places, up_places = places[None, :, None] + words, up_places[None, :, None] + words
    grids, up_grids = grids[None, :] + warp[:, None] * grid_step, up_grids[None, :] + warp[:, None] * up_grid_step
    column = (
        warp[:, None, None, None] * GROUP + word[None, None, :, None] * 8 + eighth[None, None, None, :]
    )  # fmt: skip
    x_places = x + member[None, :, None, None] * x_step + column
    if DEPENDENT:
        wait_for_others(INTERPRETED)
    if ADDED:
        added = tl.load(residual_places, mask=stored, other=0.0)
    else:
        added = tl.zeros([NARROW, ROWS], tl.float32)
    ones = tl.full([WARPS, ROWS, WORDS], 1.0, TYPE)
    sums = tl.zeros([WARPS, ROWS, NARROW], tl.float32)
    up_sums = tl.zeros([WARPS, ROWS, NARROW], tl.float32)
    squares = tl.zeros([WARPS, MEMBERS, WORDS, 8], tl.float32)
    groups = inputs // GROUP
    for first in tl.range(0, groups, WARPS, num_stages=STAGES):
        here = first + warp < groups
        held = read(places + first * WORDS, here[:, None, None], EVEN, False)
        grid = read(grids + first * grid_step, here[:, None], EVEN, False)
        vector = read(x_places + first * GROUP, here[:, None, None, None], EVEN, True)
        if NORMED:
            wide = vector.to(tl.float32)
            squares += wide * wide
            weight = read(norm_weight + first * GROUP + column, here[:, None, None, None], EVEN, True)
            vector = wide * weight.to(tl.float32)
        x0, x1, x2, x3, x4, x5, x6, x7 = eighths(vector.to(TYPE), WARPS, MEMBERS)
        given = eight_products(ones, ones, ones, ones, ones, ones, ones, ones, x0, x1, x2, x3, x4, x5, x6, x7)
        p0, p1, p2, p3, p4, p5, p6, p7 = planes(held, INTERPRETED)
        found = eight_products(p0, p1, p2, p3, p4, p5, p6, p7, x0, x1, x2, x3, x4, x5, x6, x7)
        sums += in_grids(found, given, grid)
        if GATED:
            up_held = read(up_places + first * WORDS, here[:, None, None], EVEN, False)
            up_grid = read(up_grids + first * up_grid_step, here[:, None], EVEN, False)
            u0, u1, u2, u3, u4, u5, u6, u7 = planes(up_held, INTERPRETED)
            up_found = eight_products(u0, u1, u2, u3, u4, u5, u6, u7, x0, x1, x2, x3, x4, x5, x6, x7)
            up_sums += in_grids(up_found, given, up_grid)
    normal = tl.sum(tl.sum(tl.sum(squares, 0), 2), 1)
    normal = tl.reshape(tl.broadcast_to(normal[None, :], [NARROW // MEMBERS, MEMBERS]), [NARROW])
    return tl.trans(tl.sum(sums, 0)), tl.trans(tl.sum(up_sums, 0)), normal[:, None], added
