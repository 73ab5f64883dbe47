"""bfloat16 weights in 12 bits, made again on a GPU.

The plain truth is `kernels.exponent12.naive_weights`. Codes and indices are read as words of four bytes, and weights
come two at a time, in the halves of a word.
"""

from __future__ import annotations

import torch

import triton
import triton.language as tl
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.exponent12 import COLUMNS, ROWS, Packed
from inference_pio.kernels.triton.launch import on_device
from inference_pio.kernels.triton.support import Cause, Support, require, supports_device

UNPACKED_COLUMNS = 512
"""Columns that a program makes of 16 rows: a warp's threads write 16 bytes each."""

GROUP: tl.constexpr = tl.constexpr(COLUMNS)
SIGNS: tl.constexpr = tl.constexpr(-0x7FFF8000)
MANTISSAS: tl.constexpr = tl.constexpr(0x007F007F)
INDICES: tl.constexpr = tl.constexpr(0x07800780)


@triton.jit
def even_and_odd(tile, ROW_COUNT: tl.constexpr, GROUPS: tl.constexpr):
    """The first and the second word of each eight codes: [ROW_COUNT, GROUPS, 2] each, of [ROW_COUNT, GROUPS, 4]."""
    return tl.split(tl.reshape(tile, [ROW_COUNT, GROUPS, 2, 2]))


@triton.jit
def signs_and_mantissas(word, second: tl.constexpr):
    """Those of the first and the third code of a word, or of the second and the fourth, in its two halves."""
    if second:
        return (word & SIGNS) | ((word >> 8) & MANTISSAS)
    else:
        return ((word << 8) & SIGNS) | (word & MANTISSAS)


@triton.jit
def exponents(word, place: tl.constexpr):
    """Two of the eight indices of a word, where exponents have their last bits."""
    if place == 0:
        word = word << 7
    elif place == 1:
        word = word << 3
    elif place == 2:
        word = word >> 1
    else:
        word = word >> 5
    return word & INDICES


@triton.jit
def neighbours(code, index, lowest, first: tl.constexpr):
    """Two words: the bits of columns c and c + 1, and of c + 2 and c + 3; `first`: of the first word of eight codes."""
    place: tl.constexpr = 0 if first else 2
    base = (lowest.to(tl.int32) << 7) - 128
    low, high = signs_and_mantissas(code, 0), signs_and_mantissas(code, 1)
    low_exponents, high_exponents = exponents(index, place), exponents(index, place + 1)
    one = (low & 0x807F) | ((low_exponents + base) & 0x7F80)
    other = (high & 0x807F) | ((high_exponents + base) & 0x7F80)
    third = ((low >> 16) & 0x807F) | (((low_exponents >> 16) + base) & 0x7F80)
    fourth = ((high >> 16) & 0x807F) | (((high_exponents >> 16) + base) & 0x7F80)
    return one | (other << 16), third | (fourth << 16)


@triton.jit
def exponent12_codes_kernel(codes, indices, lowest, out, rows, inputs, ROW_COUNT: tl.constexpr,
                            COLUMN_COUNT: tl.constexpr):  # fmt: skip
    """Every weight from its code and its index; listed ones are written over by the kernel behind."""
    GROUPS: tl.constexpr = COLUMN_COUNT // GROUP
    row = tl.program_id(0) * ROW_COUNT + tl.arange(0, ROW_COUNT)
    group = (tl.program_id(1) * GROUPS + tl.arange(0, GROUPS))[None, :, None]
    there = (row < rows)[:, None, None] & (group < inputs // GROUP)
    start = row.to(tl.int64)[:, None, None] * (inputs // 8)
    code = tl.load(codes + start * 2 + group * 4 + tl.arange(0, 4)[None, None, :], mask=there, other=0)
    index = tl.load(indices + start + group * 2 + tl.arange(0, 2)[None, None, :], mask=there, other=0)
    of_row = tl.load(lowest + row, mask=row < rows, other=0)[:, None, None]
    even, odd = even_and_odd(code, ROW_COUNT, GROUPS)
    first, second = neighbours(even, index, of_row, True)
    third, fourth = neighbours(odd, index, of_row, False)
    words = tl.join(tl.join(first, second), tl.join(third, fourth))  # rows, groups, eights, pairs, words
    words = tl.reshape(tl.permute(words, (0, 1, 2, 4, 3)), [ROW_COUNT, GROUPS, 8])
    tl.store(out + start * 4 + group * 8 + tl.arange(0, 8)[None, None, :], words, mask=there)


@triton.jit
def exponent12_listed_kernel(starts, listed_places, listed_values, out, BLOCK: tl.constexpr):
    """The listed weights of one run of rows, to their places."""
    run = tl.program_id(0)
    begin, end = tl.load(starts + run), tl.load(starts + run + 1)
    for start in tl.range(begin, end, BLOCK):
        number = start + tl.arange(0, BLOCK)
        place = tl.load(listed_places + number, mask=number < end, other=0)
        tl.store(out + place, tl.load(listed_values + number, mask=number < end, other=0), mask=number < end)


def exponent12_unpack(packed: Packed, out: torch.Tensor | None = None) -> torch.Tensor:
    """The matrix [N, K] that packed tensors stand for, bfloat16, every bit as it was: for products of many rows.

    Of a stack, `packed` may hold one matrix's own parts and starts beside the lists of all. Raises InvalidSetting for
    tensors that do not lie side by side, or are where no kernel runs.
    """
    rows, inputs = packed.codes.shape
    out = torch.empty(rows, inputs, dtype=torch.bfloat16, device=packed.codes.device) if out is None else out
    if out.dtype is not torch.bfloat16 or out.shape != (rows, inputs):
        raise InvalidSetting(f"{rows} x {inputs} bfloat16 weights do not go into {tuple(out.shape)} of {out.dtype}.")
    if not all(part.is_contiguous() for part in (*packed, out)):
        require(Support(Cause.LAYOUT, "the elements of a row do not lie side by side"))
    require(supports_device(out.device))
    codes, indices, lowest, _, starts, places, values = packed
    with on_device(out):
        grid = (triton.cdiv(rows, ROWS), triton.cdiv(inputs, UNPACKED_COLUMNS))
        exponent12_codes_kernel[grid](
            codes.view(torch.int32), indices.view(torch.int32), lowest, out.view(torch.int32), rows, inputs,
            ROW_COUNT=ROWS, COLUMN_COUNT=UNPACKED_COLUMNS, num_warps=8,
        )  # fmt: skip
        exponent12_listed_kernel[(triton.cdiv(rows, ROWS),)](
            starts, places, values.view(torch.int16), out.view(torch.int16), BLOCK=32, num_warps=1
        )
    return out
