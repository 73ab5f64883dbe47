"""Kernels that are nothing but sums in order: for tests, which cannot launch a helper by itself."""

from __future__ import annotations

import triton
import triton.language as tl

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
