"""Weights of half a byte in groups, times a few rows, by the matrix units: each warp takes groups of its own.

Words come to the units' own layout before they are unpacked, so that what travels through shared memory is half a byte
a weight. A code becomes a number by its bits, 128 more than it is: two at a time, one instruction each. Products with
ones give what x sums up to in the same layout; step and middle of a group then make of both what its codes stand for.
"""

from __future__ import annotations

import triton
import triton.language as tl
from inference_pio.kernels.triton.group_codes import ABOVE_MIDDLE, nibble
from inference_pio.kernels.triton.overlap import let_others_begin, wait

WORDS = tl.constexpr(16)
"""Words of a row that a warp takes in one step: 128 codes, a whole group."""
NARROW = tl.constexpr(8)
"""Columns of x that the units take at least."""


@triton.jit
def planes(words, GROUPS: tl.constexpr, ROWS: tl.constexpr, INTERPRETED: tl.constexpr):
    """Eight tensors [GROUPS, ROWS, 16] of codes, each plus 128: in the first four lie the pairs of every even word, at
    the places of that word and of the odd one behind it, and in the others the pairs of every odd word.

    Any order does, where x is in the same; in this one a mask makes two numbers, and nothing else moves them.
    """
    if INTERPRETED:
        even, odd = tl.split(tl.reshape(words, [GROUPS, ROWS, WORDS // 2, 2]))
        return (
            pair(even, 0, GROUPS, ROWS), pair(even, 4, GROUPS, ROWS), pair(even, 8, GROUPS, ROWS),
            pair(even, 12, GROUPS, ROWS), pair(odd, 0, GROUPS, ROWS), pair(odd, 4, GROUPS, ROWS),
            pair(odd, 8, GROUPS, ROWS), pair(odd, 12, GROUPS, ROWS),
        )  # fmt: skip
    else:
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 upper;
            lop3.b32 $0, $8, 0x000F000F, 0x43004300, 0xEA;
            shr.u32 upper, $8, 4;
            lop3.b32 $1, upper, 0x000F000F, 0x43004300, 0xEA;
            shr.u32 upper, $8, 8;
            lop3.b32 $2, upper, 0x000F000F, 0x43004300, 0xEA;
            shr.u32 upper, $8, 12;
            lop3.b32 $3, upper, 0x000F000F, 0x43004300, 0xEA;
            lop3.b32 $4, $9, 0x000F000F, 0x43004300, 0xEA;
            shr.u32 upper, $9, 4;
            lop3.b32 $5, upper, 0x000F000F, 0x43004300, 0xEA;
            shr.u32 upper, $9, 8;
            lop3.b32 $6, upper, 0x000F000F, 0x43004300, 0xEA;
            shr.u32 upper, $9, 12;
            lop3.b32 $7, upper, 0x000F000F, 0x43004300, 0xEA;
            }
            """,
            "=r,=r,=r,=r,=r,=r,=r,=r,r,r", [words],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16,
                   tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True, pack=2,
        )  # fmt: skip


@triton.jit
def pair(words, shift: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr):
    """A pair of neighbours of each word [GROUPS, ROWS, 8] side by side, without a GPU's instructions."""
    return tl.reshape(tl.join(nibble(words, shift), nibble(words, shift + 16)), [GROUPS, ROWS, WORDS])


@triton.jit
def tile_of(words, GROUPS: tl.constexpr, ROWS: tl.constexpr, INTERPRETED: tl.constexpr):
    """The codes of words [GROUPS, ROWS, 16], each plus 128, as the tall matrix [GROUPS, ROWS, 128], one plane behind
    another."""
    p0, p1, p2, p3, p4, p5, p6, p7 = planes(words, GROUPS, ROWS, INTERPRETED)
    even = tl.join(tl.join(p0, p4), tl.join(p2, p6))
    odd = tl.join(tl.join(p1, p5), tl.join(p3, p7))
    tile = tl.reshape(tl.join(even, odd), [GROUPS, ROWS, WORDS, 8])
    return tl.reshape(tl.permute(tile, (0, 1, 3, 2)), [GROUPS, ROWS, 8 * WORDS])


@triton.jit
def narrow(x, GROUPS: tl.constexpr, MEMBERS: tl.constexpr):
    """x [GROUPS, MEMBERS, 128] in the order of `tile_of`, as the narrow matrix [GROUPS, 128, 8], the members again and
    again."""
    # the words of a group: halves, quads, pairs; then the pairs of codes of each word, and the two of a pair
    x = tl.permute(tl.reshape(x, [GROUPS, MEMBERS, 2, 4, 2, 4, 2]), (0, 4, 5, 2, 3, 6, 1))
    x = tl.reshape(x, [GROUPS, 8 * WORDS, MEMBERS])
    if MEMBERS < NARROW:
        x = tl.broadcast_to(x[:, :, None, :], [GROUPS, 8 * WORDS, NARROW // MEMBERS, MEMBERS])
        x = tl.reshape(x, [GROUPS, 8 * WORDS, NARROW])
    return x


@triton.jit
def in_grids(sums, found, given, grid):
    """Sums, and what products with bare codes stand for, where `given` is what x sums up to."""
    step = (grid << 16).to(tl.float32, bitcast=True)
    middle = ((grid >> 16) << 16).to(tl.float32, bitcast=True)
    return sums + step[:, :, None] * found + (middle - ABOVE_MIDDLE * step)[:, :, None] * given


@triton.jit
def read(places, here, EVEN: tl.constexpr, OFTEN: tl.constexpr):
    if EVEN:
        return tl.load(places, eviction_policy="evict_last" if OFTEN else "evict_first")
    return tl.load(places, mask=here, other=0, eviction_policy="evict_last" if OFTEN else "evict_first")


@triton.jit
def sums_by_group_units(
    x, norm_weight, weight, up_weight, places, up_places, grids, up_grids, residual_places, stored, x_step, inputs,
    grid_step, up_grid_step, COUNT: tl.constexpr, MEMBERS: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr,
    EVEN: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr, ADDED: tl.constexpr, DEPENDENT: tl.constexpr,
    STAGES: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Products [8, ROWS] with one or two weights, sums of squares of x, residual: `GROUPS` groups of a row in a step,
    and those of `STAGES` steps on their way. `places` of rows, behind `weight`, and `grids` count in words."""
    TYPE: tl.constexpr = tl.float32 if INTERPRETED else tl.bfloat16  # the interpreter multiplies the bits of bfloat16
    GROUP: tl.constexpr = 8 * WORDS
    group, word, column = tl.arange(0, GROUPS), tl.arange(0, WORDS), tl.arange(0, GROUP)
    member = tl.minimum(tl.arange(0, MEMBERS), COUNT - 1)
    words = group[:, None, None] * WORDS + word[None, None, :]
    places, up_places = places[None, :, None] + words, up_places[None, :, None] + words
    grids, up_grids = grids[None, :] + group[:, None] * grid_step, up_grids[None, :] + group[:, None] * up_grid_step
    columns = group[:, None, None] * GROUP + column[None, None, :]
    x_columns = member[None, :, None] * x_step + columns
    if DEPENDENT:  # others begin near this one's end: before, they would take the room of its programs
        wait(INTERPRETED)
    if ADDED:
        added = tl.load(residual_places, mask=stored, other=0.0)
    else:
        added = tl.zeros([NARROW, ROWS], tl.float32)
    ones = tl.full([GROUPS, ROWS, GROUP], 1.0, TYPE)
    sums = tl.zeros([GROUPS, ROWS, NARROW], tl.float32)
    up_sums = tl.zeros([GROUPS, ROWS, NARROW], tl.float32)
    squares = tl.zeros([GROUPS, MEMBERS, GROUP], tl.float32)
    groups = inputs // GROUP
    for first in tl.range(0, groups, GROUPS, num_stages=STAGES):
        here = first + group < groups
        held = read((weight + first * WORDS) + places, here[:, None, None], EVEN, False)
        grid = read(grids + first * grid_step, here[:, None], EVEN, False)
        vector = read((x + first * GROUP) + x_columns, here[:, None, None], EVEN, True)
        if NORMED:
            wide = vector.to(tl.float32)
            squares += wide * wide
            vector = wide * read((norm_weight + first * GROUP) + columns, here[:, None, None], EVEN, True).to(
                tl.float32
            )
        vector = narrow(vector.to(TYPE), GROUPS, MEMBERS)
        given = tl.dot(ones, vector)
        sums = in_grids(sums, tl.dot(tile_of(held, GROUPS, ROWS, INTERPRETED), vector), given, grid)
        if GATED:
            up_held = read((up_weight + first * WORDS) + up_places, here[:, None, None], EVEN, False)
            up_grid = read(up_grids + first * up_grid_step, here[:, None], EVEN, False)
            up_found = tl.dot(tile_of(up_held, GROUPS, ROWS, INTERPRETED), vector)
            up_sums = in_grids(up_sums, up_found, given, up_grid)
    if DEPENDENT:
        let_others_begin(INTERPRETED)
    normal = tl.sum(tl.sum(squares, 2), 0)
    normal = tl.reshape(tl.broadcast_to(normal[None, :], [NARROW // MEMBERS, MEMBERS]), [NARROW])
    return tl.trans(tl.sum(sums, 0)), tl.trans(tl.sum(up_sums, 0)), normal[:, None], added
