"""Sums of products with bfloat16 weights in 12 bits: the very numbers that plain weights are, in the very order.

Weights come about two at a time, in the halves of a word, with their exponents, and what is listed is put in its place
before anything is multiplied. A thread reads 16 codes and the eight bytes of their indices, or half of both;
nothing moves between threads but sums.

A step of the plain kernel may be taken as several smaller ones, its folds. The first of every step come first, then the
second of every step; each has sums of its own, and the folds' totals are neighbours.
"""

from __future__ import annotations

import triton
import triton.language as tl
from inference_pio.kernels.exponent12 import ROWS
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
EVEN_INDICES, ODD_INDICES = tl.constexpr(0x0F0F0F0F), tl.constexpr(-0x0F0F0F10)
SIGNS, EXPONENTS = tl.constexpr(-0x7FFF8000), tl.constexpr(0x7F807F80)


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
def listed_by_step(listed_rows, starts, places, first, inputs, ROW_COUNT: tl.constexpr, COLUMN_COUNT: tl.constexpr):
    """Where the listed weights of a program's rows begin and end in the list of all, and which steps have any: a bit
    each, the last of all steps from the 32nd on. Of rows without any no place is read."""
    run, own_rows = first // RUN, ((1 << ROW_COUNT) - 1) << (first % RUN)
    own_rows &= tl.load(listed_rows + run).to(tl.int32)
    begin, end = tl.load(starts + run), tl.load(starts + run + 1)
    before, own, steps = 0, 0, 0
    if own_rows != 0:
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
def read_tile(codes, indices, group, start, inputs, GROUP: tl.constexpr):
    """Words of codes [ROWS * GROUPS, GROUP / 4] and of indices [ROWS * GROUPS, GROUP / 8] from a column on; behind the
    last input, those that stand for finite numbers, where x is zero. Codes leave the first cache to x: telling so takes
    six instructions a load."""
    inside = start + group * GROUP < inputs
    code = tl.load(codes + start // 4, mask=inside, other=0, eviction_policy="evict_first")
    return code, tl.load(indices + start // 8, mask=inside, other=LOWEST_INDICES)


@triton.jit
def merged(ones, others, BITS: tl.constexpr, INTERPRETED: tl.constexpr):
    """`SIGNS` or `EXPONENTS` of one word, all other bits of another: an instruction, of which a compiler that knows the
    masks makes two or three."""
    if INTERPRETED:
        return (ones & BITS) | (others & ~BITS)
    elif BITS == SIGNS:
        return tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, $2, 0x80008000, 0xE4;", "=r,r,r", [ones, others], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        return tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, $2, 0x7F807F80, 0xE4;", "=r,r,r", [ones, others], dtype=tl.int32, is_pure=True, pack=1
        )


@triton.jit
def moved(word, BITS: tl.constexpr, base, INTERPRETED: tl.constexpr):
    """A word moved up by three bits or seven, and a base added: one instruction."""
    if INTERPRETED:
        return (word << BITS) + base
    elif BITS == 3:
        return tl.inline_asm_elementwise(
            "mad.lo.s32 $0, $1, 8, $2;", "=r,r,r", [word, base], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        return tl.inline_asm_elementwise(
            "mad.lo.s32 $0, $1, 128, $2;", "=r,r,r", [word, base], dtype=tl.int32, is_pure=True, pack=1
        )


@triton.jit
def in_pairs(code, index, base, ROW_COUNT: tl.constexpr, COUNT: tl.constexpr, INTERPRETED: tl.constexpr):
    """Weights of each four columns as two words [1, ROWS, COUNT]: the bits of the first and third, of the others.

    With every other index zero, exponents lie in their places after one product and sum, and other bits are left out.
    """
    code = tl.reshape(code, [1, ROW_COUNT, COUNT])
    index = tl.reshape(tl.join(index, index >> 8), [1, ROW_COUNT, COUNT])
    even = merged(code << 8, code, SIGNS, INTERPRETED)
    odd = merged(code, code >> 8, SIGNS, INTERPRETED)
    even = merged(moved(index & EVEN_INDICES, 7, base, INTERPRETED), even, EXPONENTS, INTERPRETED)
    odd = merged(moved(index & ODD_INDICES, 3, base, INTERPRETED), odd, EXPONENTS, INTERPRETED)
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
def words_of(places, columns, start, inputs, EVEN: tl.constexpr):
    """Of what every program reads, two bfloat16 numbers each."""
    if EVEN:
        return tl.load(places + start // 2)
    return tl.load(places + start // 2, mask=columns + start < inputs, other=0)


@triton.jit
def numbers_read(
    places, columns, start, inputs, BATCH: tl.constexpr, FOURS: tl.constexpr, GROUP: tl.constexpr, EVEN: tl.constexpr,
    WORDS: tl.constexpr,
):  # fmt: skip
    """What every program reads, 16 bytes of bfloat16 of a thread at a time: four times [BATCH, 1, FOURS], in float32.

    `WORDS`: places are of words, which become numbers by one instruction each, where numbers of two bytes take two.
    """
    if WORDS:
        vector = words_of(places, columns, start, inputs, EVEN)
        if GROUP > EIGHT:
            second = words_of(places, columns, start + EIGHT, inputs, EVEN)
            vector = tl.permute(tl.join(vector, second), (0, 2, 1))
        one, other = tl.split(tl.reshape(vector, [BATCH, 1, FOURS, 2]))
        first, third, second, fourth = numbers(one, other)
        return first, second, third, fourth
    else:
        vector = read_often(places, columns, start, inputs, EVEN)
        if GROUP > EIGHT:
            second = read_often(places, columns, start + EIGHT, inputs, EVEN)
            vector = tl.permute(tl.join(vector, second), (0, 2, 1))
        return apart(tl.reshape(vector, [BATCH, 1, FOURS, FOUR]), BATCH, 1, FOURS, FOUR)


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
def step_behind(start, inputs, COLUMN_COUNT: tl.constexpr, FOLDS: tl.constexpr):
    """Where the step behind one begins: one fold's steps come behind another's; behind the last, past all inputs."""
    behind = start + FOLDS * COLUMN_COUNT
    if FOLDS > 1:
        fold = start // COLUMN_COUNT % FOLDS
        behind = tl.where((behind < inputs) | (fold == FOLDS - 1), behind, (fold + 1) * COLUMN_COUNT)
    return behind


@triton.jit
def with_fold(totals, sums, start, OUTER: tl.constexpr, ROW_COUNT: tl.constexpr, COLUMN_COUNT: tl.constexpr,
              FOLDS: tl.constexpr):  # fmt: skip
    """Two totals [OUTER, ROW_COUNT], of the first and the last half of the folds, with the one that ends by the step
    from `start` on. Of four folds, sums of two are neighbours."""
    total = sum_by_neighbours(sums, OUTER, ROW_COUNT, COLUMN_COUNT // FOUR)
    if FOLDS < 4:
        return totals[0] + total, totals[1]
    else:
        late = start // COLUMN_COUNT % FOLDS >= FOLDS // 2
        return totals[0] + tl.where(late, 0.0, total), totals[1] + tl.where(late, total, 0.0)


@triton.jit
def exact_sums_by_threads(
    x, norm_weight, codes, indices, lowest, listed_rows, starts, listed_places, listed_values, up_codes, up_indices,
    up_lowest, up_listed_rows, up_starts, up_listed_places, up_listed_values, first, rows, residual_places, stored,
    x_step, inputs,
    COUNT: tl.constexpr, BATCH: tl.constexpr, ROW_COUNT: tl.constexpr, COLUMN_COUNT: tl.constexpr, FOLDS: tl.constexpr,
    GROUP: tl.constexpr, EVEN: tl.constexpr, WORDS: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr,
    ADDED: tl.constexpr, DEPENDENT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """What `gemv_sums.sums_by_threads` gives for the plain weights in steps of `FOLDS * COLUMN_COUNT`, to the bit: a
    tile is in use, one or two come."""
    GROUPS: tl.constexpr = COLUMN_COUNT // GROUP
    FOURS: tl.constexpr = COLUMN_COUNT // FOUR
    FAR: tl.constexpr = GROUP == EIGHT  # two small tiles are on their way
    OF_PLACE: tl.constexpr = 2 if WORDS else 1
    last, held = rows - 1, tl.minimum(first + tl.arange(0, ROW_COUNT), rows - 1)
    places, index_places, group = places_of(codes, indices, first, last, inputs, ROW_COUNT, GROUPS, GROUP)
    base = first_exponents(lowest, held)
    code, index = read_tile(places, index_places, group, 0, inputs, GROUP)
    if FAR:
        next_start = step_behind(0, inputs, COLUMN_COUNT, FOLDS)
        next_code, next_index = read_tile(places, index_places, group, next_start, inputs, GROUP)
    begin, end, steps = listed_by_step(listed_rows, starts, listed_places, first, inputs, ROW_COUNT, COLUMN_COUNT)
    if GATED:
        up_places, up_index_places, _ = places_of(up_codes, up_indices, first, last, inputs, ROW_COUNT, GROUPS, GROUP)
        up_base = first_exponents(up_lowest, held)
        up_code, up_index = read_tile(up_places, up_index_places, group, 0, inputs, GROUP)
        if FAR:
            next_up_code, next_up_index = read_tile(up_places, up_index_places, group, next_start, inputs, GROUP)
        up_begin, up_end, up_steps = listed_by_step(
            up_listed_rows, up_starts, up_listed_places, first, inputs, ROW_COUNT, COLUMN_COUNT
        )
    if DEPENDENT:
        wait_for_others(INTERPRETED)
    added = read_residual(residual_places, stored, BATCH, ROW_COUNT, ADDED)
    number, own = tl.arange(0, BATCH * GROUPS)[:, None], tl.arange(0, EIGHT // OF_PLACE)[None, :]
    columns = number % GROUPS * GROUP  # where a thread's own begin: all are inputs, or none
    x_places = x + tl.minimum(number // GROUPS, COUNT - 1) * x_step + columns // OF_PLACE + own
    norm_columns = tl.arange(0, GROUPS)[:, None] * GROUP
    norm_places = norm_weight
    if NORMED:
        norm_places = norm_weight + norm_columns // OF_PLACE + own
    sums = tl.zeros([BATCH, ROW_COUNT, FOURS], tl.float32)
    up_sums = tl.zeros([BATCH, ROW_COUNT, FOURS], tl.float32)
    squares = tl.zeros([BATCH, 1, FOURS], tl.float32)
    totals = tl.zeros([BATCH, ROW_COUNT], tl.float32), tl.zeros([BATCH, ROW_COUNT], tl.float32)
    up_totals, square_totals = totals, (tl.zeros([BATCH, 1], tl.float32), tl.zeros([BATCH, 1], tl.float32))
    start = 0
    for _ in tl.range(0, tl.cdiv(inputs, COLUMN_COUNT)):
        far_start = step_behind(next_start if FAR else start, inputs, COLUMN_COUNT, FOLDS)
        far_code, far_index = read_tile(places, index_places, group, far_start, inputs, GROUP)
        even, odd = in_pairs(code, index, base, ROW_COUNT, FOURS, INTERPRETED)
        step = tl.minimum(start // COLUMN_COUNT, LAST_BIT)
        if (steps >> step) & 1:
            even, odd = with_listed(
                even, odd, listed_places, listed_values, begin, end, first, start, inputs, ROW_COUNT, FOURS
            )
        if GATED:
            far_up_code, far_up_index = read_tile(up_places, up_index_places, group, far_start, inputs, GROUP)
            up_even, up_odd = in_pairs(up_code, up_index, up_base, ROW_COUNT, FOURS, INTERPRETED)
            if (up_steps >> step) & 1:
                up_even, up_odd = with_listed(
                    up_even, up_odd, up_listed_places, up_listed_values, up_begin, up_end, first, start, inputs,
                    ROW_COUNT, FOURS,
                )  # fmt: skip
        parts = numbers_read(x_places, columns, start, inputs, BATCH, FOURS, GROUP, EVEN, WORDS)
        if NORMED:
            squares = add_products(squares, parts, parts, FOUR)
            norm = numbers_read(norm_places, norm_columns, start, inputs, 1, FOURS, GROUP, EVEN, WORDS)
            parts = parts[0] * norm[0], parts[1] * norm[1], parts[2] * norm[2], parts[3] * norm[3]
        sums = add_products(sums, parts, numbers(even, odd), FOUR)
        if GATED:
            up_sums = add_products(up_sums, parts, numbers(up_even, up_odd), FOUR)
        if FOLDS > 1:  # noqa: SIM102 (it is known when this is compiled)
            if start + FOLDS * COLUMN_COUNT >= inputs:
                totals = with_fold(totals, sums, start, BATCH, ROW_COUNT, COLUMN_COUNT, FOLDS)
                sums = tl.zeros_like(sums)
                if GATED:
                    up_totals = with_fold(up_totals, up_sums, start, BATCH, ROW_COUNT, COLUMN_COUNT, FOLDS)
                    up_sums = tl.zeros_like(up_sums)
                if NORMED:
                    square_totals = with_fold(square_totals, squares, start, BATCH, 1, COLUMN_COUNT, FOLDS)
                    squares = tl.zeros_like(squares)
        if FAR:
            code, index, next_code, next_index = next_code, next_index, far_code, far_index
            start, next_start = next_start, far_start
            if GATED:
                up_code, up_index = next_up_code, next_up_index
                next_up_code, next_up_index = far_up_code, far_up_index
        else:
            code, index, start = far_code, far_index, far_start
            if GATED:
                up_code, up_index = far_up_code, far_up_index
    if FOLDS > 1:
        return totals[0] + totals[1], up_totals[0] + up_totals[1], square_totals[0] + square_totals[1], added
    else:
        total = sum_by_neighbours(sums, BATCH, ROW_COUNT, FOURS)
        up = sum_by_neighbours(up_sums, BATCH, ROW_COUNT, FOURS)
        return total, up, sum_by_neighbours(squares, BATCH, 1, FOURS), added
