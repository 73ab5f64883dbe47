"""Sums in one order, whatever the layout: kernels that read one matrix in different forms give the same bits.

Four neighbours in a row of weights are added to their sum one after another, each product unrounded; a step's sums
become one by neighbours, and those by neighbours again. So bits depend on how many columns a step has, and on nothing
else of a launch whose threads have four of a row or more.
"""

from __future__ import annotations

import triton
import triton.language as tl

NEIGHBOURS = 4
MOST_LEVELS = tl.constexpr(16)


@triton.jit
def apart(tile, OUTER: tl.constexpr, ROWS: tl.constexpr, COUNT: tl.constexpr, TOGETHER: tl.constexpr):
    """A tile [OUTER, ROWS, ..., columns] as its first, second, third and fourth columns of each four, each [OUTER,
    ROWS, COUNT]; of two or one where so few are `TOGETHER`."""
    if TOGETHER == 4:
        even, odd = tl.split(tl.reshape(tile, [OUTER, ROWS, COUNT, 2, 2]))
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        return first, second, third, fourth
    elif TOGETHER == 2:
        first, second = tl.split(tl.reshape(tile, [OUTER, ROWS, COUNT, 2]))
        return first, second
    else:
        return (tl.reshape(tile, [OUTER, ROWS, COUNT]),)


@triton.jit
def add_products(sums, ones, others, TOGETHER: tl.constexpr):
    """`sums` [B, R, COUNT] and products of what lies `apart`, in the order of their columns."""
    for place in tl.static_range(TOGETHER):
        sums = tl.fma(ones[place], others[place], sums)
    return sums


@triton.jit
def sum_by_neighbours(sums, OUTER: tl.constexpr, ROWS: tl.constexpr, COUNT: tl.constexpr):
    """[OUTER, ROWS] of [OUTER, ROWS, COUNT]: two numbers have one sum, in whichever threads they are."""
    for level in tl.static_range(MOST_LEVELS):
        if (COUNT >> level) > 1:
            sums = tl.sum(tl.reshape(sums, [OUTER, ROWS, COUNT >> (level + 1), 2]), 3)
    return tl.reshape(sums, [OUTER, ROWS])
