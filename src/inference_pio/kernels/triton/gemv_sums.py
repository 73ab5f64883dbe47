"""Sums of products with tiles of weights: by threads, which add up their own, or by matrix units."""

from __future__ import annotations

import triton
import triton.language as tl
from inference_pio.kernels.triton.gemv_ends import read_residual
from inference_pio.kernels.triton.ordered_sums import NEIGHBOURS, add_products, apart, sum_by_neighbours
from inference_pio.kernels.triton.overlap import wait_for_others
from inference_pio.kernels.triton.row_codes import number, operand

MOST_TOGETHER = tl.constexpr(NEIGHBOURS)


@triton.jit
def read_once(places, columns, start, inputs, EVEN: tl.constexpr):
    """A tile of weights as it is stored, zeros behind the last input; nothing else will ask the cache for it."""
    if EVEN:
        return tl.load(places + start, mask=start < inputs, other=0.0, eviction_policy="evict_first")
    return tl.load(places + start, mask=columns + start < inputs, other=0.0, eviction_policy="evict_first")


@triton.jit
def read_often(places, columns, start, inputs, EVEN: tl.constexpr):
    """What every program reads, in float32."""
    if EVEN:
        return tl.load(places + start, eviction_policy="evict_last").to(tl.float32)
    return tl.load(places + start, mask=columns + start < inputs, other=0, eviction_policy="evict_last").to(tl.float32)


@triton.jit
def halved(tile, half: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, HALVES: tl.constexpr,
           LANE: tl.constexpr):  # fmt: skip
    """The part of a tile that belongs to one read of `x`: 16 bytes hold 16 codes, but 8 numbers of two bytes."""
    if HALVES == 2:
        first, second = tl.split(tl.permute(tl.reshape(tile, [1, ROWS, GROUPS, 2, LANE]), (0, 1, 2, 4, 3)))
        tile = first if half == 0 else second
    return number(tile)


@triton.jit
def sums_by_threads(
    x, norm_weight, places, up_places, residual_places, stored, x_step, inputs, COUNT: tl.constexpr,
    BATCH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, HALVES: tl.constexpr, LANE: tl.constexpr,
    EVEN: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr, ADDED: tl.constexpr, DEPENDENT: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Products [BATCH, ROWS] with one or two weights, sums of squares of x, residual: a tile is in use, one comes."""
    WIDE: tl.constexpr = HALVES * LANE
    GROUPS: tl.constexpr = COLUMNS // WIDE
    group = tl.arange(0, GROUPS)[None, None, :, None] * WIDE
    column = group + tl.arange(0, LANE)[None, None, None, :]
    wide_column = group + tl.arange(0, WIDE)[None, None, None, :]
    places = places[None, :, None, None] + wide_column
    tile = read_once(places, wide_column, 0, inputs, EVEN)
    if GATED:
        up_places = up_places[None, :, None, None] + wide_column
        up_tile = read_once(up_places, wide_column, 0, inputs, EVEN)
    if DEPENDENT:
        wait_for_others(INTERPRETED)
    added = read_residual(residual_places, stored, BATCH, ROWS, ADDED)
    member = tl.minimum(tl.arange(0, BATCH), COUNT - 1)
    x_places = x + member[:, None, None, None] * x_step + column
    TOGETHER: tl.constexpr = LANE if LANE < MOST_TOGETHER else MOST_TOGETHER
    COUNT_OF_SUMS: tl.constexpr = GROUPS * LANE // TOGETHER
    sums = tl.zeros([BATCH, ROWS, COUNT_OF_SUMS], tl.float32)
    up_sums = tl.zeros([BATCH, ROWS, COUNT_OF_SUMS], tl.float32)
    squares = tl.zeros([BATCH, 1, COUNT_OF_SUMS], tl.float32)
    for start in tl.range(0, inputs, COLUMNS):
        next_tile = read_once(places, wide_column, start + COLUMNS, inputs, EVEN)
        if GATED:
            next_up_tile = read_once(up_places, wide_column, start + COLUMNS, inputs, EVEN)
        for half in tl.static_range(HALVES):
            vector = read_often(x_places, column, start + half * LANE, inputs, EVEN)
            parts = apart(vector, BATCH, 1, COUNT_OF_SUMS, TOGETHER)
            if NORMED:
                squares = add_products(squares, parts, parts, TOGETHER)
                vector = vector * read_often(norm_weight + column, column, start + half * LANE, inputs, EVEN)
                parts = apart(vector, BATCH, 1, COUNT_OF_SUMS, TOGETHER)
            weights = halved(tile, half, ROWS, GROUPS, HALVES, LANE)
            sums = add_products(sums, parts, apart(weights, 1, ROWS, COUNT_OF_SUMS, TOGETHER), TOGETHER)
            if GATED:
                weights = halved(up_tile, half, ROWS, GROUPS, HALVES, LANE)
                up_sums = add_products(up_sums, parts, apart(weights, 1, ROWS, COUNT_OF_SUMS, TOGETHER), TOGETHER)
        tile = next_tile
        if GATED:
            up_tile = next_up_tile
    total = sum_by_neighbours(sums, BATCH, ROWS, COUNT_OF_SUMS)
    up = sum_by_neighbours(up_sums, BATCH, ROWS, COUNT_OF_SUMS)
    return total, up, sum_by_neighbours(squares, BATCH, 1, COUNT_OF_SUMS), added


@triton.jit
def sums_by_matrix_units(
    x, norm_weight, places, up_places, residual_places, stored, x_step, inputs, COUNT: tl.constexpr,
    BATCH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EVEN: tl.constexpr, NORMED: tl.constexpr,
    GATED: tl.constexpr, ADDED: tl.constexpr, DEPENDENT: tl.constexpr, STAGES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """The same, where weights are the tall matrix and x the narrow one: `STAGES` tiles are on their way."""
    TYPE: tl.constexpr = tl.float32 if INTERPRETED else tl.bfloat16  # the interpreter multiplies the bits of bfloat16
    column = tl.arange(0, COLUMNS)
    places = places[:, None] + column[None, :]
    up_places = up_places[:, None] + column[None, :]
    member = tl.minimum(tl.arange(0, BATCH), COUNT - 1)
    x_places = x + member[:, None] * x_step + column[None, :]
    sums = tl.zeros([ROWS, BATCH], tl.float32)
    up_sums = tl.zeros([ROWS, BATCH], tl.float32)
    squares = tl.zeros([BATCH, COLUMNS], tl.float32)
    if DEPENDENT:  # a first tile by itself, before waiting, would cost more than it hides: tiles come in a pipeline
        wait_for_others(INTERPRETED)
    added = read_residual(residual_places, stored, BATCH, ROWS, ADDED)
    for start in tl.range(0, inputs, COLUMNS, num_stages=STAGES):
        tile = read_once(places, column[None, :], start, inputs, EVEN)
        up_tile = tile
        if GATED:
            up_tile = read_once(up_places, column[None, :], start, inputs, EVEN)
        vector = read_often(x_places, column[None, :], start, inputs, EVEN)
        if NORMED:
            squares += vector * vector
            vector = vector * read_often(norm_weight + column, column, start, inputs, EVEN)[None, :]
        vector = tl.trans(vector.to(TYPE))
        sums = tl.dot(operand(tile, TYPE), vector, sums)
        if GATED:
            up_sums = tl.dot(operand(up_tile, TYPE), vector, up_sums)
    return tl.trans(sums), tl.trans(up_sums), tl.sum(squares, 1)[:, None], added
