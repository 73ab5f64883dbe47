"""Kernels that are parts of others: for tests, which cannot launch a helper by itself."""

from __future__ import annotations

import triton
import triton.language as tl

from inference_pio.kernels.triton.exponent12_sums import (
    first_exponents,
    in_pairs,
    listed_by_step,
    numbers,
    places_of,
    read_tile,
    with_listed,
)
from inference_pio.kernels.triton.gemv_ends import finished, gated_by
from inference_pio.kernels.triton.ordered_sums import add_products, apart, sum_by_neighbours


@triton.jit
def neighbours_kernel(given, out, COUNT: tl.constexpr):
    row = tl.program_id(0)
    numbers = tl.load(given + row * COUNT + tl.arange(0, COUNT))[None, None, :]
    place = tl.arange(0, 1)[:, None] + tl.arange(0, 1)[None, :]
    tl.store(out + row + place, sum_by_neighbours(numbers, 1, 1, COUNT))


@triton.jit
def products_kernel(ones, others, out, TOGETHER: tl.constexpr):
    row, four = tl.program_id(0), tl.arange(0, 4)[None, None, :, None]
    place = row * 4 * TOGETHER + four * TOGETHER + tl.arange(0, TOGETHER)[None, None, None, :]
    first = apart(tl.load(ones + place), 1, 1, 4, TOGETHER)
    second = apart(tl.load(others + place), 1, 1, 4, TOGETHER)
    sums = add_products(tl.zeros([1, 1, 4], tl.float32), first, second, TOGETHER)
    tl.store(out + row * 4 + tl.arange(0, 4)[None, None, :], sums)


@triton.jit
def ends_kernel(sums, up, normal, scale, bias, out):
    place = tl.arange(0, 8)[None, :]
    read = tl.load(sums + place)
    total = finished(
        read, tl.load(normal + place), tl.load(scale + place), tl.load(bias + place), tl.int8, True, True, True
    )
    tl.store(out + place, total)
    tl.store(out + 8 + place, gated_by(read, tl.load(up + place)))


@triton.jit
def steps_kernel(listed_rows, starts, places, out, first, inputs, ROW_COUNT: tl.constexpr, COLUMN_COUNT: tl.constexpr):
    begin, end, steps = listed_by_step(listed_rows, starts, places, first, inputs, ROW_COUNT, COLUMN_COUNT)
    tl.store(out, begin)
    tl.store(out + 1, end)
    tl.store(out + 2, steps)


@triton.jit
def placed_kernel(codes, indices, lowest, places, values, out, count, first, start, inputs):
    code_places, index_places, group = places_of(codes, indices, first, 7, inputs, 2, 2, 16)
    base = first_exponents(lowest, first + tl.arange(0, 2))
    code, index = read_tile(code_places, index_places, group, start, inputs, 16)
    even, odd = in_pairs(code, index, base, 2, 8, True)
    even, odd = with_listed(even, odd, places, values, 0, count, first, start, inputs, 2, 8)
    column = tl.arange(0, 2)[None, :, None] * 32 + tl.arange(0, 8)[None, None, :] * 4
    found = numbers(even, odd)
    for place in tl.static_range(4):
        tl.store(out + column + place, found[place])
