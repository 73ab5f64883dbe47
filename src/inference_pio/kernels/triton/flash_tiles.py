"""Which tile of the scores a program of `flash_roles` works on, and where each step's keys lie."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def tile_of(number, sizes, starts, counts,
            GROUP: gl.constexpr, ROWS: gl.constexpr, TILE: gl.constexpr, PARTS: gl.constexpr, CAUSAL: gl.constexpr,
            HAS_STARTS: gl.constexpr, LISTED: gl.constexpr):  # fmt: skip
    """Tile `number`: its row of the batch, its head and first query; its first key, or where its list begins, and the
    blocks of that; its steps, and how many of them hold a key that some query must not see. Those come first.

    Heads that share keys stand side by side, and long rows first: the last tiles to run are short.
    """
    heads, key_heads, queries, keys, most = sizes
    row_blocks = gl.cdiv(queries, ROWS)
    row_block = row_blocks - 1 - (number // GROUP) % row_blocks
    pair = number // (GROUP * row_blocks)
    batch, head = pair // key_heads, (pair % key_heads) * GROUP + number % GROUP
    first_row = row_block * ROWS
    offset = keys - queries  # the last query stands at the last key
    if LISTED:
        row = (batch * heads + head).to(gl.int64) * row_blocks + row_block
        begin = row * most
        blocks = gl.load(counts + row)
        steps = gl.maximum(gl.cdiv(blocks, PARTS), 1)
        crossing = 1  # the last block may end behind the last key
        if CAUSAL:
            BLOCK: gl.constexpr = TILE // PARTS
            crossing = (ROWS + BLOCK - 1) // BLOCK + (offset % BLOCK != 0).to(gl.int32)
        masked = gl.minimum(steps, 1 + gl.cdiv(gl.maximum(crossing - _in_first(blocks, steps, PARTS), 0), PARTS))
    else:
        begin = offset.to(gl.int64) * 0
        if HAS_STARTS:  # steps begin where the keys do: no padding is read
            begin += gl.maximum(gl.load(starts + batch), 0)
        until, free = keys, keys
        if CAUSAL:
            until = gl.minimum(keys, offset + first_row + ROWS)
            free = gl.minimum(keys, offset + first_row + 1)
        first = begin.to(gl.int32)
        blocks = gl.maximum(gl.cdiv(until - first, TILE), 1)
        steps = blocks
        masked = gl.maximum(steps - gl.maximum(free - first, 0) // TILE, 1)
    return batch, head, first_row, begin, blocks, steps, masked


@gluon.jit
def _in_first(blocks, steps, PARTS: gl.constexpr):
    """How many blocks of a list the first step takes: all others take PARTS."""
    return blocks - (steps - 1) * PARTS


@gluon.jit
def place_of(step, indices, begin, blocks, steps, keys, part: gl.constexpr, TILE: gl.constexpr, PARTS: gl.constexpr,
             LISTED: gl.constexpr):  # fmt: skip
    """Where a part of a step's keys begins, from the last to the first; behind all keys where there is none."""
    if LISTED:
        taken = step * PARTS + gl.where(step > 0, _in_first(blocks, steps, PARTS) - PARTS, 0)
        spot = blocks - 1 - part - taken
        there = (step > 0) | (part < _in_first(blocks, steps, PARTS))
        block = gl.load(indices + begin + gl.maximum(spot, 0))
        place = gl.where(there, block * (TILE // PARTS), keys)
    else:
        place = begin.to(gl.int32) + (steps - 1 - step) * TILE
    return place


@gluon.jit
def places_of(step, indices, begin, blocks, steps, keys, layout: gl.constexpr, TILE: gl.constexpr,
              PARTS: gl.constexpr, LISTED: gl.constexpr):  # fmt: skip
    """The positions of a step's keys [TILE]."""
    along = gl.arange(0, TILE, layout=layout)
    places = place_of(step, indices, begin, blocks, steps, keys, 0, TILE, PARTS, LISTED) + along
    for part in gl.static_range(1, PARTS):
        BEFORE: gl.constexpr = part * (TILE // PARTS)
        place = place_of(step, indices, begin, blocks, steps, keys, part, TILE, PARTS, LISTED)
        places = gl.where(along < BEFORE, places, place - BEFORE + along)
    return places
