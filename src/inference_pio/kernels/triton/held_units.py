"""Weights of a byte or half of one, times a few rows, by matrix units that are fed from registers.

Each warp takes groups of its own, and two steps of its weights are on their way from memory to the registers that the
units read; the first two are asked for before the kernel in front has ended. x alone goes through shared memory.

The units take 16 rows and 8 columns, however few there are. So that a program may have fewer rows, each of its rows is
cut along the inputs into parts, which are rows of the units; the same parts of x are columns of theirs. Of what comes
out only products of a part with the same part of x are meant: the others cost nothing more.
"""

from __future__ import annotations

import triton
import triton.language as tl
from inference_pio.kernels.triton.group_units import NARROW, WORDS, in_grids
from inference_pio.kernels.triton.held_tiles import FP8, NIBBLES, held_tile, in_their_order
from inference_pio.kernels.triton.overlap import let_others_begin, wait

LARGER = tl.constexpr(2.0**60)
"""By so much x is taken larger, and the sums once more, where numbers of fp8 are 2**120 times less."""


@triton.jit
def read_words(places, step, group, groups, HALF: tl.constexpr, GROUPS: tl.constexpr, EVEN: tl.constexpr):
    """The words of a step; of whole steps behind the last one those of the last, of others none.

    Compilers hand threads out along what lies closest; they are told rows, so that the groups are left to the warps.
    """
    if EVEN:
        step = tl.minimum(step, groups - GROUPS)
        return tl.load(tl.max_contiguous(places + step * WORDS, [1, HALF, WORDS]), eviction_policy="evict_first")
    here = (step + group < groups)[:, None, None]
    places = tl.max_contiguous(places + step * WORDS, [1, HALF, WORDS])
    return tl.load(places, mask=here, other=0, eviction_policy="evict_first")


@triton.jit
def read_grid(places, step, step_of_grid, group, groups, GROUPS: tl.constexpr, EVEN: tl.constexpr):
    if EVEN:
        return tl.load(places + tl.minimum(step, groups - GROUPS) * step_of_grid, eviction_policy="evict_first")
    return tl.load(
        places + step * step_of_grid, mask=(step + group < groups)[:, None], other=0, eviction_policy="evict_first"
    )


@triton.jit
def read_x(places, step, group, groups, MEMBERS: tl.constexpr, GROUP: tl.constexpr):
    """x of a step, zeros behind the last group; each warp takes its own groups, as it does of the words."""
    here = (step + group < groups)[:, None, None]
    places = tl.max_contiguous(places + step * GROUP, [1, MEMBERS, GROUP])
    return tl.load(places, mask=here, other=0, eviction_policy="evict_last")


@triton.jit
def normed_x(vector, squares, norm_places, step, group, groups, MEMBERS: tl.constexpr, GROUP: tl.constexpr,
             TYPE: tl.constexpr, CODES: tl.constexpr, NORMED: tl.constexpr):  # fmt: skip
    """x times the weights of its norm, and the squares that its norm is made of."""
    if NORMED:
        wide = vector.to(tl.float32)
        squares += wide * wide
        vector = wide * read_x(norm_places, step, group, groups, MEMBERS, GROUP).to(tl.float32)
    if CODES == FP8:
        vector = vector.to(tl.float32) * LARGER
    return vector.to(TYPE), squares


@triton.jit
def multiplied(sums, low, high, grid, narrow, given, GROUPS: tl.constexpr, HALF: tl.constexpr, CODES: tl.constexpr,
               INTERPRETED: tl.constexpr):  # fmt: skip
    """Sums [GROUPS, 16, 8], and the products of a step."""
    tile = held_tile(low, high, GROUPS, HALF, CODES, INTERPRETED)
    if CODES == NIBBLES:
        return in_grids(sums, tl.dot(tile, narrow), given, grid)
    else:
        return tl.dot(tile, narrow, sums)


@triton.jit
def meant(sums, ROWS: tl.constexpr, PARTS: tl.constexpr):
    """Products [8 / PARTS, ROWS] of whole rows, from those [GROUPS, ROWS * PARTS, 8] of parts. Rows and columns are of
    one part after another, and where both are of the same one, the product is meant."""
    sums = tl.sum(sums, 0)
    if PARTS > 1:
        row, column = tl.arange(0, ROWS * PARTS) % PARTS, tl.arange(0, NARROW) % PARTS
        sums = tl.where(row[:, None] == column[None, :], sums, 0.0)
        sums = tl.sum(tl.reshape(sums, [ROWS * PARTS, NARROW // PARTS, PARTS]), 2)
        sums = tl.sum(tl.reshape(sums, [ROWS, PARTS, NARROW // PARTS]), 1)
    return tl.trans(sums)


@triton.jit
def read_step(
    low_places, high_places, grids, step, step_of_grid, group, groups, HALF: tl.constexpr, GROUPS: tl.constexpr,
    CODES: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Words of a step in two halves of the rows, and its grids, where there are any."""
    low = read_words(low_places, step, group, groups, HALF, GROUPS, EVEN)
    high = read_words(high_places, step, group, groups, HALF, GROUPS, EVEN)
    if CODES == NIBBLES:
        return low, high, read_grid(grids, step, step_of_grid, group, groups, GROUPS, EVEN)
    else:
        return low, high, 0


@triton.jit
def sums_by_held_units(
    x, norm_weight, weight, up_weight, row_step, up_row_step, grids, up_grids, residual_places, stored, x_step, inputs,
    grid_step, up_grid_step, last, COUNT: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
    GROUPS: tl.constexpr, CODES: tl.constexpr, EVEN: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr,
    ADDED: tl.constexpr, DEPENDENT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Products [8 / PARTS, ROWS] with one or two weights, sums of squares of x, residual: `GROUPS` groups of each part
    of a row in a step, `ROWS` in `PARTS` being 16 rows of words of so many `CODES`.

    `weight` and `grids` are those of the program's first row, `last` the last row behind it that there is; they count
    in words. The whole rows of x are `BATCH`, of which `COUNT` are meant.
    """
    TYPE: tl.constexpr = tl.float32 if INTERPRETED else tl.bfloat16  # the interpreter multiplies the bits of bfloat16
    GROUP: tl.constexpr = CODES * WORDS
    TALL: tl.constexpr = ROWS * PARTS
    HALF: tl.constexpr = TALL // 2
    MEMBERS: tl.constexpr = BATCH * PARTS
    groups = inputs // (GROUP * PARTS)
    group, row = tl.arange(0, GROUPS), tl.arange(0, TALL)
    half = tl.arange(0, HALF)[None, :, None]
    # behind the last row, parts of the last one are read
    low_row, high_row = tl.minimum(half // PARTS, last), tl.minimum((half + HALF) // PARTS, last)
    low_part, high_part = half % PARTS, (half + HALF) % PARTS
    words = group[:, None, None] * WORDS + tl.arange(0, WORDS)[None, None, :]
    low_places = weight + low_row * row_step + low_part * groups * WORDS + words
    high_places = weight + high_row * row_step + high_part * groups * WORDS + words
    behind, turn = tl.minimum(row // PARTS, last)[None, :], ((row % PARTS) * groups)[None, :] + group[:, None]
    grids, up_grids = grids + behind + turn * grid_step, up_grids + behind + turn * up_grid_step
    low0, high0, grid0 = read_step(
        low_places, high_places, grids, 0, grid_step, group, groups, HALF, GROUPS, CODES, EVEN
    )
    low1, high1, grid1 = read_step(
        low_places, high_places, grids, GROUPS, grid_step, group, groups, HALF, GROUPS, CODES, EVEN
    )
    if GATED:
        low_ups = up_weight + low_row * up_row_step + low_part * groups * WORDS + words
        high_ups = up_weight + high_row * up_row_step + high_part * groups * WORDS + words
        low_up0, high_up0, up_grid0 = read_step(
            low_ups, high_ups, up_grids, 0, up_grid_step, group, groups, HALF, GROUPS, CODES, EVEN
        )
        low_up1, high_up1, up_grid1 = read_step(
            low_ups, high_ups, up_grids, GROUPS, up_grid_step, group, groups, HALF, GROUPS, CODES, EVEN
        )
    if DEPENDENT:  # others begin near this one's end: before, they would take the room of its programs
        wait(INTERPRETED)
    if ADDED:
        added = tl.load(residual_places, mask=stored, other=0.0)
    else:
        added = tl.zeros([NARROW // PARTS, ROWS], tl.float32)
    member = tl.arange(0, MEMBERS)
    columns = group[:, None, None] * GROUP + tl.arange(0, GROUP)[None, None, :]
    columns += ((member % PARTS) * groups)[None, :, None] * GROUP
    x_places = x + tl.minimum(member // PARTS, COUNT - 1)[None, :, None] * x_step + columns
    norm_places = norm_weight
    if NORMED:
        norm_places = norm_weight + columns
    sums = tl.zeros([GROUPS, TALL, NARROW], tl.float32)
    up_sums = tl.zeros([GROUPS, TALL, NARROW], tl.float32)
    squares = tl.zeros([GROUPS, MEMBERS, GROUP], tl.float32)
    vector0 = read_x(x_places, 0, group, groups, MEMBERS, GROUP)
    vector1 = read_x(x_places, GROUPS, group, groups, MEMBERS, GROUP)
    for first in tl.range(0, groups, 2 * GROUPS, num_stages=1):
        # as often as steps are on their way: then what comes takes the place of what goes, and nothing is moved
        for number in tl.static_range(2):
            step = first + number * GROUPS
            vector, squares = normed_x(
                vector0, squares, norm_places, step, group, groups, MEMBERS, GROUP, TYPE, CODES, NORMED
            )  # fmt: skip
            narrow = in_their_order(vector, GROUPS, MEMBERS, CODES)
            given = 0.0
            if CODES == NIBBLES:
                given = tl.sum(vector.to(tl.float32), 2)
                given = tl.broadcast_to(given[:, None, :], [GROUPS, NARROW // MEMBERS, MEMBERS])
                given = tl.reshape(given, [GROUPS, 1, NARROW])
            later = read_x(x_places, step + 2 * GROUPS, group, groups, MEMBERS, GROUP)
            sums = multiplied(sums, low0, high0, grid0, narrow, given, GROUPS, HALF, CODES, INTERPRETED)
            low, high, grid = read_step(
                low_places, high_places, grids, step + 2 * GROUPS, grid_step, group, groups, HALF, GROUPS, CODES, EVEN
            )  # fmt: skip
            if GATED:
                up_sums = multiplied(
                    up_sums, low_up0, high_up0, up_grid0, narrow, given, GROUPS, HALF, CODES, INTERPRETED
                )  # fmt: skip
                low_up, high_up, up_grid = read_step(
                    low_ups, high_ups, up_grids, step + 2 * GROUPS, up_grid_step, group, groups, HALF, GROUPS, CODES,
                    EVEN,
                )  # fmt: skip
                low_up0, high_up0, up_grid0 = low_up1, high_up1, up_grid1
                low_up1, high_up1, up_grid1 = low_up, high_up, up_grid
            low0, high0, grid0 = low1, high1, grid1
            low1, high1, grid1 = low, high, grid
            vector0, vector1 = vector1, later
    if DEPENDENT:
        let_others_begin(INTERPRETED)
    normal = tl.sum(tl.sum(squares, 2), 0)
    if PARTS > 1:
        normal = tl.sum(tl.reshape(normal, [BATCH, PARTS]), 1)
    normal = tl.reshape(tl.broadcast_to(normal[None, :], [NARROW // MEMBERS, BATCH]), [NARROW // PARTS])
    total, up = meant(sums, ROWS, PARTS), meant(up_sums, ROWS, PARTS)
    if CODES == FP8:
        total, up = total * LARGER, up * LARGER
    return total, up, normal[:, None], added
