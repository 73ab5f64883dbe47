"""Weights of half a byte in groups, times a few rows: a thread unpacks what it reads, eight codes from each word.

A code becomes a number by its bits: 128 more than it is, which two moved bytes make, where converting takes four times
as long. What is too much is taken off once a unit, together with the group's step and middle.
"""

from __future__ import annotations

import triton
import triton.language as tl
from inference_pio.kernels.triton.overlap import wait_for_others

CODES_OF_A_WORD = 8
ABOVE_MIDDLE = tl.constexpr(136.0)
"""By how much a number of `eight` lies above the code that stands for a group's middle."""


@triton.jit
def eight(word, INTERPRETED: tl.constexpr):
    """The codes of a word, in the order of the inputs, each plus 128."""
    if INTERPRETED:
        return nibbles(word)
    else:
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 low, high;
            and.b32 low, $8, 0x0F0F0F0F;
            shr.u32 high, $8, 4;
            and.b32 high, high, 0x0F0F0F0F;
            prmt.b32 $0, low, 0x43000000, 0x7044;
            prmt.b32 $1, low, 0x43000000, 0x7244;
            prmt.b32 $2, high, 0x43000000, 0x7044;
            prmt.b32 $3, high, 0x43000000, 0x7244;
            prmt.b32 $4, low, 0x43000000, 0x7144;
            prmt.b32 $5, low, 0x43000000, 0x7344;
            prmt.b32 $6, high, 0x43000000, 0x7144;
            prmt.b32 $7, high, 0x43000000, 0x7344;
            }
            """,
            "=r,=r,=r,=r,=r,=r,=r,=r,r", [word],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=True, pack=1,
        )  # fmt: skip


@triton.jit
def nibbles(word):
    """The same without a GPU's instructions."""
    return (
        nibble(word, 0), nibble(word, 16), nibble(word, 4), nibble(word, 20),
        nibble(word, 8), nibble(word, 24), nibble(word, 12), nibble(word, 28),
    )  # fmt: skip


@triton.jit
def nibble(word, shift: tl.constexpr):
    return ((word >> shift) & 15).to(tl.float32) + 128.0


@triton.jit
def halves(tile, BATCH: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, LENGTH: tl.constexpr):
    """The first and the second half of what a thread holds along the last axis."""
    return tl.split(tl.permute(tl.reshape(tile, [BATCH, ROWS, UNITS, 2, LENGTH // 2]), (0, 1, 2, 4, 3)))


@triton.jit
def word_of(tile, which: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
            WORDS: tl.constexpr):  # fmt: skip
    """One of the words that a thread holds of each row."""
    if WORDS == 1:
        word = tl.reshape(tile, [BATCH, ROWS, UNITS])
    else:
        pair = tile
        if WORDS == 4:
            first, second = halves(tile, BATCH, ROWS, UNITS, 4)
            pair = first if which < 2 else second
        even, odd = tl.split(pair)
        word = even if which % 2 == 0 else odd
    return word


@triton.jit
def eighths(tile, BATCH: tl.constexpr, UNITS: tl.constexpr):
    """What a thread holds of x, one by one."""
    first, second = halves(tile, BATCH, 1, UNITS, 8)
    a, b = halves(first, BATCH, 1, UNITS, 4)
    c, d = halves(second, BATCH, 1, UNITS, 4)
    a0, a1 = tl.split(a)
    b0, b1 = tl.split(b)
    c0, c1 = tl.split(c)
    d0, d1 = tl.split(d)
    return a0, a1, b0, b1, c0, c1, d0, d1


@triton.jit
def products(sums, x0, x1, x2, x3, x4, x5, x6, x7, word, INTERPRETED: tl.constexpr):
    c0, c1, c2, c3, c4, c5, c6, c7 = eight(word, INTERPRETED)
    sums += x0 * c0
    sums += x1 * c1
    sums += x2 * c2
    sums += x3 * c3
    sums += x4 * c4
    sums += x5 * c5
    sums += x6 * c6
    return sums + x7 * c7


@triton.jit
def in_grid(sums, given, grid):
    """What the products with bare codes stand for: `given` is the sum of what they were multiplied with, and a grid
    holds the step in its lower half and the middle in its upper one."""
    step = (grid << 16).to(tl.float32, bitcast=True)
    middle = ((grid >> 16) << 16).to(tl.float32, bitcast=True)
    return step * sums + (middle - ABOVE_MIDDLE * step) * given


@triton.jit
def read_words(places, unit, start, inputs, WORDS: tl.constexpr, EVEN: tl.constexpr):
    """Words of codes as they are stored; nothing else will ask the cache for them."""
    if EVEN:
        return tl.load(places + start // 8, mask=start < inputs, other=0, eviction_policy="evict_first")
    inside = (start + unit * (8 * WORDS) < inputs)[None, None, :, None]
    return tl.load(places + start // 8, mask=inside, other=0, eviction_policy="evict_first")


@triton.jit
def read_grids(places, unit, start, inputs, grid_step, GROUP: tl.constexpr, WORDS: tl.constexpr):
    column = start + unit * (8 * WORDS)
    offset = (column // GROUP) * grid_step
    return tl.load(places + offset[None, None, :], mask=(column < inputs)[None, None, :], other=0)


@triton.jit
def read_eights(places, unit, start, inputs, WORDS: tl.constexpr, EVEN: tl.constexpr):
    """What every program reads, in float32."""
    if EVEN:
        return tl.load(places + start, eviction_policy="evict_last").to(tl.float32)
    inside = (start + unit * (8 * WORDS) < inputs)[None, None, :, None]
    return tl.load(places + start, mask=inside, other=0, eviction_policy="evict_last").to(tl.float32)


@triton.jit
def sums_by_groups(
    x, norm_weight, places, up_places, grids, up_grids, residual_places, stored, x_step, inputs, grid_step,
    up_grid_step, COUNT: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    WORDS: tl.constexpr, GROUP: tl.constexpr, EVEN: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr,
    ADDED: tl.constexpr, DEPENDENT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Products [BATCH, ROWS] with one or two weights, sums of squares of x, residual: a tile is in use, one comes."""
    UNITS: tl.constexpr = COLUMNS // (8 * WORDS)
    unit = tl.arange(0, UNITS)
    words = unit[None, None, :, None] * WORDS + tl.arange(0, WORDS)[None, None, None, :]
    places = places[None, :, None, None] + words
    grids = grids[None, :, None]
    tile = read_words(places, unit, 0, inputs, WORDS, EVEN)
    grid = read_grids(grids, unit, 0, inputs, grid_step, GROUP, WORDS)
    if GATED:
        up_places = up_places[None, :, None, None] + words
        up_grids = up_grids[None, :, None]
        up_tile = read_words(up_places, unit, 0, inputs, WORDS, EVEN)
        up_grid = read_grids(up_grids, unit, 0, inputs, up_grid_step, GROUP, WORDS)
    if DEPENDENT:
        wait_for_others(INTERPRETED)
    if ADDED:
        added = tl.load(residual_places, mask=stored, other=0.0)
    else:
        added = tl.zeros([BATCH, ROWS], tl.float32)
    column = unit[None, None, :, None] * (8 * WORDS) + tl.arange(0, 8)[None, None, None, :]
    member = tl.minimum(tl.arange(0, BATCH), COUNT - 1)
    x_places = x + member[:, None, None, None] * x_step + column
    sums = tl.zeros([BATCH, ROWS, UNITS], tl.float32)
    up_sums = tl.zeros([BATCH, ROWS, UNITS], tl.float32)
    squares = tl.zeros([BATCH, 1, UNITS], tl.float32)
    for start in tl.range(0, inputs, COLUMNS):
        next_tile = read_words(places, unit, start + COLUMNS, inputs, WORDS, EVEN)
        next_grid = read_grids(grids, unit, start + COLUMNS, inputs, grid_step, GROUP, WORDS)
        if GATED:
            next_up_tile = read_words(up_places, unit, start + COLUMNS, inputs, WORDS, EVEN)
            next_up_grid = read_grids(up_grids, unit, start + COLUMNS, inputs, up_grid_step, GROUP, WORDS)
        found = tl.zeros([BATCH, ROWS, UNITS], tl.float32)
        up_found = tl.zeros([BATCH, ROWS, UNITS], tl.float32)
        given = tl.zeros([BATCH, 1, UNITS], tl.float32)
        for which in tl.static_range(WORDS):
            vector = read_eights(x_places, unit, start + which * 8, inputs, WORDS, EVEN)
            if NORMED:
                squares += tl.sum(vector * vector, 3)
                vector = vector * read_eights(norm_weight + column, unit, start + which * 8, inputs, WORDS, EVEN)
            given += tl.sum(vector, 3)
            x0, x1, x2, x3, x4, x5, x6, x7 = eighths(vector, BATCH, UNITS)
            word = word_of(tile, which, 1, ROWS, UNITS, WORDS)
            found = products(found, x0, x1, x2, x3, x4, x5, x6, x7, word, INTERPRETED)
            if GATED:
                up_word = word_of(up_tile, which, 1, ROWS, UNITS, WORDS)
                up_found = products(up_found, x0, x1, x2, x3, x4, x5, x6, x7, up_word, INTERPRETED)
        sums += in_grid(found, given, grid)
        tile, grid = next_tile, next_grid
        if GATED:
            up_sums += in_grid(up_found, given, up_grid)
            up_tile, up_grid = next_up_tile, next_up_grid
    return tl.sum(sums, 2), tl.sum(up_sums, 2), tl.sum(squares, 2), added


@triton.jit
def rows_by_groups(
    x, places, grids, here, grid_step, BATCH: tl.constexpr, ROWS: tl.constexpr, INPUTS: tl.constexpr,
    COLUMNS: tl.constexpr, WORDS: tl.constexpr, GROUP: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Products [BATCH, ROWS] of rows of matrices, at `places` and with `grids` [BATCH, ROWS], with vectors at `x`
    [BATCH], where they are `here`: of other rows nothing is read, of vectors all."""
    UNITS: tl.constexpr = COLUMNS // (8 * WORDS)
    unit, one, eighth = tl.arange(0, UNITS), tl.arange(0, WORDS), tl.arange(0, 8)
    sums = tl.zeros([BATCH, ROWS, UNITS], tl.float32)
    for start in tl.static_range(0, INPUTS, COLUMNS):
        column = start + unit * (8 * WORDS)
        read = here[:, :, None] & (column < INPUTS)[None, None, :]
        word = (start // 8) + unit[:, None] * WORDS + one[None, :]
        tile = tl.load(places[:, :, None, None] + word[None, None, :, :], mask=read[:, :, :, None], other=0,
                       eviction_policy="evict_first")  # fmt: skip
        grid = tl.load(grids[:, :, None] + ((column // GROUP) * grid_step)[None, None, :], mask=read, other=0)
        found = tl.zeros([BATCH, ROWS, UNITS], tl.float32)
        given = tl.zeros([BATCH, 1, UNITS], tl.float32)
        for which in tl.static_range(WORDS):
            offsets = (column + which * 8)[None, None, :, None] + eighth[None, None, None, :]
            vector = tl.load(x[:, None, None, None] + offsets, mask=offsets < INPUTS, other=0.0).to(tl.float32)
            given += tl.sum(vector, 3)
            x0, x1, x2, x3, x4, x5, x6, x7 = eighths(vector, BATCH, UNITS)
            held = word_of(tile, which, BATCH, ROWS, UNITS, WORDS)
            found = products(found, x0, x1, x2, x3, x4, x5, x6, x7, held, INTERPRETED)
        sums += in_grid(found, given, grid)
    return tl.sum(sums, 2)
