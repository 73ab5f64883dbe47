"""Sums of products with bfloat16 weights in 12 bits: the very numbers that plain weights are, in the very order.

Weights come about two at a time, in the halves of a word, with their exponents, and what is listed is put in its place
before anything is multiplied. A thread reads 16 codes and the eight bytes of their indices, or half of both;
nothing moves between threads but sums.
"""

from __future__ import annotations

import triton
import triton.language as tl
from inference_pio.kernels.exponent12 import ROWS
from inference_pio.kernels.triton.exponent12 import exponents, signs_and_mantissas
from inference_pio.kernels.triton.gemv_ends import read_residual
from inference_pio.kernels.triton.gemv_sums import read_often
from inference_pio.kernels.triton.ordered_sums import NEIGHBOURS, add_products, apart, sum_by_neighbours
from inference_pio.kernels.triton.overlap import wait_for_others

RUN = tl.constexpr(ROWS)
FOUR = tl.constexpr(NEIGHBOURS)
EIGHT = tl.constexpr(8)
CHUNK = tl.constexpr(32)
LAST_BIT = tl.constexpr(31)
IN_BOTH_HALVES = tl.constexpr(0x00800080)
HIGH_HALF = tl.constexpr(-0x10000)
LOWEST_INDICES = tl.constexpr(0x11111111)


@triton.jit
def either(one, other):
    return one | other


@triton.jit
def row_and_column(place, inputs, ROW_COUNT: tl.constexpr):
    """Of a place in the rows of a program: few comparisons, where a division takes twenty instructions."""
    row = place * 0
    for other in tl.static_range(1, ROW_COUNT):
        row += (place >= other * inputs).to(tl.int32)
    return row, place - row * inputs


@triton.jit
def listed_by_step(starts, places, first, inputs, ROW_COUNT: tl.constexpr, COLUMN_COUNT: tl.constexpr):
    """Where the listed weights of a program's rows begin and end in the list of all, and which steps have any: a bit
    each, the last of all steps from the 32nd on."""
    run = first // RUN
    begin, end = tl.load(starts + run), tl.load(starts + run + 1)
    before, own, steps = 0, 0, 0
    for start in tl.range(begin, end, CHUNK):
        number = start + tl.arange(0, CHUNK)
        place = tl.load(places + number, mask=number < end, other=0) - first * inputs
        behind = (number < end) & (place >= 0)
        mine = behind & (place < ROW_COUNT * inputs)
        _, column = row_and_column(tl.where(mine, place, 0), inputs, ROW_COUNT)
        step = tl.minimum(column // COLUMN_COUNT, LAST_BIT)
        before += tl.sum(((number < end) & (place < 0)).to(tl.int32), 0)
        own += tl.sum(mine.to(tl.int32), 0)
        steps |= tl.reduce(tl.where(mine, 1 << step, 0), 0, either)
    return begin + before, begin + before + own, steps


@triton.jit
def read_words(places, group, start, inputs, GROUP: tl.constexpr, OTHER: tl.constexpr):
    """Words of a tile; behind the last input, those that stand for finite numbers, where x is zero."""
    inside = start + group * GROUP < inputs
    return tl.load(places, mask=inside, other=OTHER, eviction_policy="evict_first")


@triton.jit
def read_tile(codes, indices, group, start, inputs, GROUP: tl.constexpr):
    """Words of codes [ROWS * GROUPS, GROUP / 4] and of indices [ROWS * GROUPS, GROUP / 8] from a column on."""
    code = read_words(codes + start // 4, group, start, inputs, GROUP, 0)
    return code, read_words(indices + start // 8, group, start, inputs, GROUP, LOWEST_INDICES)


@triton.jit
def in_pairs(code, index, base, ROW_COUNT: tl.constexpr, COUNT: tl.constexpr):
    """Weights of each four columns as two words [1, ROWS, COUNT]: the bits of the first and third, of the others."""
    code = tl.reshape(code, [1, ROW_COUNT, COUNT])
    index = tl.reshape(tl.join(index, index >> 8), [1, ROW_COUNT, COUNT])
    even = (signs_and_mantissas(code, 0) | exponents(index, 0)) + base
    odd = (signs_and_mantissas(code, 1) | exponents(index, 1)) + base
    return even, odd


@triton.jit
def with_listed(
    even, odd, places, values, begin, end, first, start, inputs, ROW_COUNT: tl.constexpr, COUNT: tl.constexpr
):
    """The same, with the listed weights of a step in their places."""
    row, four = tl.arange(0, ROW_COUNT)[None, :, None], tl.arange(0, COUNT)[None, None, :]
    for number in tl.range(begin, end):
        place = tl.load(places + number) - first * inputs
        bits = tl.load(values + number).to(tl.int32) & 0xFFFF
        of_row, column = row_and_column(place, inputs, ROW_COUNT)
        column -= start
        meant = (row == of_row) & (four == column >> 2)
        shift = (column & 2) << 3  # the third and fourth of four lie in high halves
        replaced, given = 0xFFFF << shift, bits << shift
        of_even, of_odd = (column & 1) - 1, -(column & 1)  # all bits of one, none of the other
        even = tl.where(meant, (even & ~(replaced & of_even)) | (given & of_even), even)
        odd = tl.where(meant, (odd & ~(replaced & of_odd)) | (given & of_odd), odd)
    return even, odd


@triton.jit
def numbers(even, odd):
    """First, second, third and fourth weights of each four columns, in float32."""
    first, second = (even << 16).to(tl.float32, bitcast=True), (odd << 16).to(tl.float32, bitcast=True)
    return (
        first,
        second,
        (even & HIGH_HALF).to(tl.float32, bitcast=True),
        (odd & HIGH_HALF).to(tl.float32, bitcast=True),
    )


@triton.jit
def wide_vector(
    places, columns, start, inputs, BATCH: tl.constexpr, FOURS: tl.constexpr, GROUP: tl.constexpr, EVEN: tl.constexpr
):
    """What every program reads, eight numbers of a thread at a time: [BATCH, 1, FOURS, 4]."""
    vector = read_often(places, columns, start, inputs, EVEN)
    if GROUP > EIGHT:
        second = read_often(places, columns, start + EIGHT, inputs, EVEN)
        vector = tl.permute(tl.join(vector, second), (0, 2, 1))
    return tl.reshape(vector, [BATCH, 1, FOURS, FOUR])


@triton.jit
def places_of(codes, indices, first, last, inputs, ROW_COUNT: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Where each thread's words of codes and of indices begin, rows behind rows, and which group of its row they are.

    Rows and groups are one dimension, so that any compiler gives the groups of a row to neighbouring threads.
    """
    number = tl.arange(0, ROW_COUNT * GROUPS)[:, None]
    group = number % GROUPS
    row_start = tl.minimum(first + number // GROUPS, last).to(tl.int64) * (inputs // 8)
    code_places = codes + row_start * 2 + group * (GROUP // 4) + tl.arange(0, GROUP // 4)[None, :]
    index_group = group
    if GROUP == EIGHT:  # neighbours must not be seen: words would be read by other threads than have their codes
        index_group = group * tl.minimum(inputs, 1)
    index_places = indices + row_start + index_group * (GROUP // 8) + tl.arange(0, GROUP // 8)[None, :]
    return code_places, index_places, group


@triton.jit
def first_exponents(lowest, held):
    """What exponents of rows begin with, in both halves of a word [1, ROWS, 1]."""
    return ((tl.load(lowest + held).to(tl.int32) - 1) * IN_BOTH_HALVES)[None, :, None]


@triton.jit
def exact_sums_by_threads(
    x, norm_weight, codes, indices, lowest, starts, listed_places, listed_values, up_codes, up_indices, up_lowest,
    up_starts, up_listed_places, up_listed_values, first, rows, residual_places, stored, x_step, inputs,
    COUNT: tl.constexpr, BATCH: tl.constexpr, ROW_COUNT: tl.constexpr, COLUMN_COUNT: tl.constexpr, GROUP: tl.constexpr,
    EVEN: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr, ADDED: tl.constexpr, DEPENDENT: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """What `gemv_sums.sums_by_threads` gives for the plain weights, to the bit: a tile is in use, one or two come."""
    GROUPS: tl.constexpr = COLUMN_COUNT // GROUP
    FOURS: tl.constexpr = COLUMN_COUNT // FOUR
    FAR: tl.constexpr = GROUP == EIGHT  # two small tiles are on their way
    AHEAD: tl.constexpr = 2 * COLUMN_COUNT if FAR else COLUMN_COUNT
    last, held = rows - 1, tl.minimum(first + tl.arange(0, ROW_COUNT), rows - 1)
    places, index_places, group = places_of(codes, indices, first, last, inputs, ROW_COUNT, GROUPS, GROUP)
    base = first_exponents(lowest, held)
    code, index = read_tile(places, index_places, group, 0, inputs, GROUP)
    if FAR:
        next_code, next_index = read_tile(places, index_places, group, COLUMN_COUNT, inputs, GROUP)
    begin, end, steps = listed_by_step(starts, listed_places, first, inputs, ROW_COUNT, COLUMN_COUNT)
    if GATED:
        up_places, up_index_places, _ = places_of(up_codes, up_indices, first, last, inputs, ROW_COUNT, GROUPS, GROUP)
        up_base = first_exponents(up_lowest, held)
        up_code, up_index = read_tile(up_places, up_index_places, group, 0, inputs, GROUP)
        if FAR:
            next_up_code, next_up_index = read_tile(up_places, up_index_places, group, COLUMN_COUNT, inputs, GROUP)
        up_begin, up_end, up_steps = listed_by_step(up_starts, up_listed_places, first, inputs, ROW_COUNT, COLUMN_COUNT)
    if DEPENDENT:
        wait_for_others(INTERPRETED)
    added = read_residual(residual_places, stored, BATCH, ROW_COUNT, ADDED)
    number, eight = tl.arange(0, BATCH * GROUPS)[:, None], tl.arange(0, EIGHT)[None, :]
    columns = number % GROUPS * GROUP + eight
    x_places = x + tl.minimum(number // GROUPS, COUNT - 1) * x_step + columns
    norm_columns = tl.arange(0, GROUPS)[:, None] * GROUP + eight
    sums = tl.zeros([BATCH, ROW_COUNT, FOURS], tl.float32)
    up_sums = tl.zeros([BATCH, ROW_COUNT, FOURS], tl.float32)
    squares = tl.zeros([BATCH, 1, FOURS], tl.float32)
    step = 0
    for start in tl.range(0, inputs, COLUMN_COUNT):
        far_code, far_index = read_tile(places, index_places, group, start + AHEAD, inputs, GROUP)
        even, odd = in_pairs(code, index, base, ROW_COUNT, FOURS)
        if (steps >> step) & 1:
            even, odd = with_listed(
                even, odd, listed_places, listed_values, begin, end, first, start, inputs, ROW_COUNT, FOURS
            )
        if GATED:
            far_up_code, far_up_index = read_tile(up_places, up_index_places, group, start + AHEAD, inputs, GROUP)
            up_even, up_odd = in_pairs(up_code, up_index, up_base, ROW_COUNT, FOURS)
            if (up_steps >> step) & 1:
                up_even, up_odd = with_listed(
                    up_even, up_odd, up_listed_places, up_listed_values, up_begin, up_end, first, start, inputs,
                    ROW_COUNT, FOURS,
                )  # fmt: skip
        vector = wide_vector(x_places, columns, start, inputs, BATCH, FOURS, GROUP, EVEN)
        parts = apart(vector, BATCH, 1, FOURS, FOUR)
        if NORMED:
            squares = add_products(squares, parts, parts, FOUR)
            vector = vector * wide_vector(
                norm_weight + norm_columns, norm_columns, start, inputs, 1, FOURS, GROUP, EVEN
            )
            parts = apart(vector, BATCH, 1, FOURS, FOUR)
        sums = add_products(sums, parts, numbers(even, odd), FOUR)
        if GATED:
            up_sums = add_products(up_sums, parts, numbers(up_even, up_odd), FOUR)
        if FAR:
            code, index, next_code, next_index = next_code, next_index, far_code, far_index
            if GATED:
                up_code, up_index = next_up_code, next_up_index
                next_up_code, next_up_index = far_up_code, far_up_index
        else:
            code, index = far_code, far_index
            if GATED:
                up_code, up_index = far_up_code, far_up_index
        step = tl.minimum(step + 1, LAST_BIT)
    total = sum_by_neighbours(sums, BATCH, ROW_COUNT, FOURS)
    up = sum_by_neighbours(up_sums, BATCH, ROW_COUNT, FOURS)
    return total, up, sum_by_neighbours(squares, BATCH, 1, FOURS), added
