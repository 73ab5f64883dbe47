"""A few rows times bfloat16 weights in 12 bits, and those weights made again, on a GPU.

The plain truths are `kernels.exponent12.naive_exponent12_linear` and `naive_weights`. Codes and indices are read as
words of four bytes, and weights come about two at a time, in the halves of a word: a row of x takes 9 instructions a
weight so, where an H100 has time for 14 while 12 bits come from memory; one at a time they would take 30. A thread
reads 16 codes and the eight bytes of their indices, and nothing moves between threads. What is listed is read by the
programs whose rows it is in.
"""

from __future__ import annotations

import torch

import triton
import triton.language as tl
from inference_pio.compat import triton_interprets
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.exponent12 import COLUMNS, NEUTRAL_LOWEST, ROWS, UNLISTED, Packed
from inference_pio.kernels.triton.gemv_launch import GemvLaunch
from inference_pio.kernels.triton.launch import Limits, device_limits, on_device
from inference_pio.kernels.triton.support import (
    ELEMENTWISE_DTYPES,
    Cause,
    Support,
    require,
    supports_device,
)

MOST_ROWS = 16
"""Rows of x that are multiplied at a time."""
MOST_BY_THREADS = 1
"""Rows of x up to which threads multiply by themselves: with more, the matrix units do it in less of their time."""
LEAST_NARROW = 8
"""Columns of the narrow matrix that matrix units take at least."""
MATRIX_ROWS = 16
UNPACKED_COLUMNS = 512
"""Columns that a program makes of 16 rows: a warp's threads write 16 bytes each."""

RUN: tl.constexpr = tl.constexpr(ROWS)
GROUP: tl.constexpr = tl.constexpr(COLUMNS)
BARE_UNLISTED: tl.constexpr = tl.constexpr(UNLISTED)
FLOAT32_SHIFT: tl.constexpr = tl.constexpr(127 - NEUTRAL_LOWEST)
CHUNK: tl.constexpr = tl.constexpr(32)
SIGNS: tl.constexpr = tl.constexpr(-0x7FFF8000)
MANTISSAS: tl.constexpr = tl.constexpr(0x007F007F)
INDICES: tl.constexpr = tl.constexpr(0x07800780)
BARE_EXPONENTS: tl.constexpr = tl.constexpr((NEUTRAL_LOWEST - 1) << 7 | (NEUTRAL_LOWEST - 1) << 23)
HIGH_HALF: tl.constexpr = tl.constexpr(-0x10000)


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
def bare_numbers(code, index, place: tl.constexpr):
    """Numbers of columns c and c + 2 in float32 (exact in bfloat16), without the lowest exponents of their rows."""
    pair = signs_and_mantissas(code, place % 2) | exponents(index, place) | BARE_EXPONENTS
    return (pair << 16).to(tl.float32, bitcast=True), (pair & HIGH_HALF).to(tl.float32, bitcast=True)


@triton.jit
def row_power(lowest):
    """The power of two that products of a row lack."""
    return ((lowest.to(tl.uint32) + FLOAT32_SHIFT) << 23).to(tl.float32, bitcast=True)


@triton.jit
def words_of(places, words, start, count, EVEN: tl.constexpr):
    """A tile of words; zeros behind the last, which stand for 2**-15, where x is zero."""
    if EVEN:
        return tl.load(places + start, mask=start < count, other=0, eviction_policy="evict_first")
    return tl.load(places + start, mask=words + start < count, other=0, eviction_policy="evict_first")


@triton.jit
def columns_of(places, columns, start, inputs, EVEN: tl.constexpr):
    if EVEN:
        return tl.load(places + start, eviction_policy="evict_last").to(tl.float32)
    return tl.load(places + start, mask=columns + start < inputs, other=0, eviction_policy="evict_last").to(tl.float32)


@triton.jit
def listed_sums(
    x, x_step, lowest, starts, listed_places, listed_values, row, first, rows, inputs, member,
    BATCH: tl.constexpr, ROW_COUNT: tl.constexpr,
):  # fmt: skip
    """What the listed weights of a program's rows add to its products [BATCH, ROW_COUNT]: value less what codes say."""
    sums = tl.zeros([BATCH, ROW_COUNT], tl.float32)
    run = first // RUN
    begin, end = tl.load(starts + run), tl.load(starts + run + 1)
    for start in tl.range(begin, end, CHUNK):
        number = start + tl.arange(0, CHUNK)
        there = number < end
        place = tl.load(listed_places + number, mask=there, other=0)
        value = tl.load(listed_values + number, mask=there, other=0.0).to(tl.float32)
        of_row = place // inputs
        there = there & (of_row >= first) & (of_row < first + ROW_COUNT)
        missing = value - row_power(tl.load(lowest + of_row, mask=there, other=0)) * BARE_UNLISTED
        given = x + member[:, None] * x_step + (place - of_row * inputs)[None, :]
        vector = tl.load(given, mask=there[None, :], other=0.0).to(tl.float32)
        added = vector * missing[None, :]
        sums += tl.sum(tl.where((of_row[None, :] == row[:, None])[None], added[:, None, :], 0.0), 2)
    return sums


@triton.jit
def add_eight(sums, vector, word, next_word, index, BATCH: tl.constexpr, GROUPS: tl.constexpr):
    """Eight columns of x [BATCH, 1, GROUPS, 8] times their weights, in two words of codes and one of indices."""
    neighbours, next_neighbours = tl.split(tl.reshape(vector, [BATCH, 1, GROUPS, 2, 2, 2]))
    pairs, next_pairs = tl.split(neighbours), tl.split(next_neighbours)
    for place in tl.static_range(4):
        low, high = bare_numbers(word if place < 2 else next_word, index, place)
        with_low, with_high = pairs if place % 2 == 0 else next_pairs
        sums += tl.split(with_low)[place // 2] * low[None]
        sums += tl.split(with_high)[place // 2] * high[None]
    return sums


@triton.jit
def sums_by_threads(
    x, codes, indices, held, member, x_step, inputs, BATCH: tl.constexpr, ROW_COUNT: tl.constexpr,
    COLUMN_COUNT: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Products [BATCH, ROW_COUNT] with bare numbers: each thread adds up its own; a tile is in use, one comes."""
    GROUPS: tl.constexpr = COLUMN_COUNT // GROUP
    group = tl.arange(0, GROUPS)[None, :, None]
    code_words = group * 4 + tl.arange(0, 4)[None, None, :]
    index_words = group * 2 + tl.arange(0, 2)[None, None, :]
    columns = (group * GROUP + tl.arange(0, GROUP // 2)[None, None, :])[None]  # 16 bytes of x at a time
    row_start = held.to(tl.int64)[:, None, None] * (inputs // 8)
    code_places, index_places = codes + row_start * 2 + code_words, indices + row_start + index_words
    x_places = x + member[:, None, None, None] * x_step + columns
    code = words_of(code_places, code_words, 0, inputs // 4, EVEN)
    index = words_of(index_places, index_words, 0, inputs // 8, EVEN)
    sums = tl.zeros([BATCH, ROW_COUNT, GROUPS], tl.float32)
    for start in tl.range(0, inputs, COLUMN_COUNT):
        next_code = words_of(code_places, code_words, (start + COLUMN_COUNT) // 4, inputs // 4, EVEN)
        next_index = words_of(index_places, index_words, (start + COLUMN_COUNT) // 8, inputs // 8, EVEN)
        even, odd = even_and_odd(code, ROW_COUNT, GROUPS)
        words, next_words, of_words = tl.split(even), tl.split(odd), tl.split(index)
        vector = columns_of(x_places, columns, start, inputs, EVEN)
        sums = add_eight(sums, vector, words[0], next_words[0], of_words[0], BATCH, GROUPS)
        vector = columns_of(x_places, columns, start + GROUP // 2, inputs, EVEN)
        sums = add_eight(sums, vector, words[1], next_words[1], of_words[1], BATCH, GROUPS)
        code, index = next_code, next_index
    return tl.sum(sums, 2)


@triton.jit
def bare_tile(code, index, ROW_COUNT: tl.constexpr, COLUMN_COUNT: tl.constexpr, TYPE: tl.constexpr):
    """Bare numbers [ROW_COUNT, COLUMN_COUNT] in the order of their columns."""
    GROUPS: tl.constexpr = COLUMN_COUNT // GROUP
    even, odd = even_and_odd(code, ROW_COUNT, GROUPS)
    low, high = bare_numbers(even, index, 0)
    next_low, next_high = bare_numbers(even, index, 1)
    first = tl.join(tl.join(low.to(TYPE), next_low.to(TYPE)), tl.join(high.to(TYPE), next_high.to(TYPE)))
    low, high = bare_numbers(odd, index, 2)
    next_low, next_high = bare_numbers(odd, index, 3)
    second = tl.join(tl.join(low.to(TYPE), next_low.to(TYPE)), tl.join(high.to(TYPE), next_high.to(TYPE)))
    tile = tl.join(first, second)  # rows, groups, eights, neighbours, pairs, words
    return tl.reshape(tl.permute(tile, (0, 1, 2, 5, 4, 3)), [ROW_COUNT, COLUMN_COUNT])


@triton.jit
def sums_by_matrix_units(
    x, codes, indices, held, member, x_step, inputs, BATCH: tl.constexpr, ROW_COUNT: tl.constexpr,
    COLUMN_COUNT: tl.constexpr, EVEN: tl.constexpr, STAGES: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """The same, where weights are the tall matrix and x the narrow one: `STAGES` tiles are on their way."""
    GROUPS: tl.constexpr = COLUMN_COUNT // GROUP
    group = tl.arange(0, GROUPS)[None, :, None]
    code_words = group * 4 + tl.arange(0, 4)[None, None, :]
    index_words = group * 2 + tl.arange(0, 2)[None, None, :]
    column = tl.arange(0, COLUMN_COUNT)[None, :]
    row_start = held.to(tl.int64)[:, None, None] * (inputs // 8)
    code_places, index_places = codes + row_start * 2 + code_words, indices + row_start + index_words
    x_places = x + member[:, None] * x_step + column
    sums = tl.zeros([ROW_COUNT, BATCH], tl.float32)
    for start in tl.range(0, inputs, COLUMN_COUNT, num_stages=STAGES):
        code = words_of(code_places, code_words, start // 4, inputs // 4, EVEN)
        index = words_of(index_places, index_words, start // 8, inputs // 8, EVEN)
        vector = columns_of(x_places, column, start, inputs, EVEN)
        tile = bare_tile(code, index, ROW_COUNT, COLUMN_COUNT, TYPE)
        sums = tl.dot(tile, tl.trans(vector.to(TYPE)), sums)
    return tl.trans(sums)


@triton.jit(do_not_specialize=["out_step", "rows"], do_not_specialize_on_alignment=["bias", "out", "lowest"])
def exponent12_gemv_kernel(
    x, codes, indices, lowest, starts, listed_places, listed_values, bias, out, x_step, out_step, rows, inputs,
    COUNT: tl.constexpr, BATCH: tl.constexpr, ROW_COUNT: tl.constexpr, COLUMN_COUNT: tl.constexpr, EVEN: tl.constexpr,
    BIASED: tl.constexpr, STAGES: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * ROW_COUNT
    row = first + tl.arange(0, ROW_COUNT)
    held = tl.minimum(row, rows - 1)
    batch = tl.arange(0, BATCH)
    member = tl.minimum(batch, COUNT - 1)
    added = listed_sums(
        x, x_step, lowest, starts, listed_places, listed_values, row, first, rows, inputs, member, BATCH, ROW_COUNT
    )
    if STAGES:
        sums = sums_by_matrix_units(
            x, codes, indices, held, member, x_step, inputs, BATCH, ROW_COUNT, COLUMN_COUNT, EVEN, STAGES, TYPE
        )
    else:
        sums = sums_by_threads(x, codes, indices, held, member, x_step, inputs, BATCH, ROW_COUNT, COLUMN_COUNT, EVEN)
    total = sums * row_power(tl.load(lowest + held))[None, :] + added
    if BIASED:
        total += tl.load(bias + held).to(tl.float32)[None, :]
    stored = (batch < COUNT)[:, None] & (row < rows)[None, :]
    tl.store(out + batch[:, None] * out_step + row[None, :], total.to(out.dtype.element_ty), mask=stored)


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


def supports_exponent12(
    x: torch.Tensor, packed: Packed, bias: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> Support:
    """Whether the kernel multiplies `x` [M, K] with a packed matrix."""
    beside = [tensor for tensor in (bias, out) if tensor is not None]
    if any(tensor.dtype not in ELEMENTWISE_DTYPES for tensor in (x, *beside)):
        return Support(Cause.DTYPE, f"it is for bfloat16, float16 or float32, and x is {x.dtype}")
    if x.dim() != 2 or packed.codes.dim() != 2 or x.shape[1] != packed.codes.shape[1]:
        return Support(Cause.SHAPE, f"{tuple(x.shape)} is not multiplied with {tuple(packed.codes.shape)}")
    if not 1 <= x.shape[0] <= MOST_ROWS:
        return Support(Cause.SHAPE, f"it is for 1 to {MOST_ROWS} rows, and x has {x.shape[0]}")
    rows = packed.codes.shape[0]
    if (bias is not None and bias.shape != (rows,)) or (out is not None and out.shape != (x.shape[0], rows)):
        return Support(Cause.SHAPE, f"a bias of {rows} and a result of {x.shape[0]} x {rows} belong here")
    if any(tensor.stride(-1) != 1 for tensor in (x, *beside)) or not all(part.is_contiguous() for part in packed):
        return Support(Cause.LAYOUT, "the elements of a row do not lie side by side")
    if any(tensor.device != x.device for tensor in (*beside, *packed)):
        return Support(Cause.DEVICE, "its tensors are on different devices")
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *beside)):
        return Support(Cause.GRADIENT, "it has no backward pass")
    return supports_device(x.device)


def choose_exponent12_launch(limits: Limits, batch: int, rows: int, inputs: int, bfloat16: bool = True) -> GemvLaunch:
    """The launch for `batch` rows of x and weights [rows, inputs]; `bfloat16`: x is. By what compiles: not timed yet.

    >>> from inference_pio.kernels.triton.launch import HOPPER
    >>> choose_exponent12_launch(HOPPER, 1, 19456, 2560).stages, choose_exponent12_launch(HOPPER, 16, 2560, 9728).stages
    (0, 3)
    """
    if batch > MOST_BY_THREADS and bfloat16:
        few = rows < 4 * MATRIX_ROWS * limits.multiprocessors
        return GemvLaunch(MATRIX_ROWS, 512 if few else 256, 4 if few else 2, stages=3)
    return GemvLaunch(1 if rows < 8 * limits.multiprocessors or batch > 2 else 2, 512, 1)


def exponent12_gemv(
    x: torch.Tensor, packed: Packed, bias: torch.Tensor | None = None, *, out: torch.Tensor | None = None,
    launch: GemvLaunch | None = None,
) -> torch.Tensor:  # fmt: skip
    """`x` [M, K], 1 to 16 rows, times a packed matrix [N, K], plus a bias [N]: [M, N], in one launch.

    Everything between reading and writing is float32; where matrix units multiply, which is for bfloat16 alone, x and
    weights lose nothing. Raises InvalidSetting for what `supports_exponent12` refuses, and for a launch whose programs
    would not lie within runs of 16 rows.
    """
    require(supports_exponent12(x, packed, bias, out))
    rows, inputs = packed.codes.shape
    launch = launch or choose_exponent12_launch(
        device_limits(x.device), x.shape[0], rows, inputs, x.dtype is torch.bfloat16
    )
    launch.require(device_limits(x.device), x.dtype)
    if launch.rows > ROWS or launch.columns < COLUMNS or launch.dependent:
        raise InvalidSetting(f"{launch} is none here: up to {ROWS} rows, {COLUMNS} columns or more, not dependent.")
    out = x.new_empty(x.shape[0], rows) if out is None else out
    batch = triton.next_power_of_2(x.shape[0])
    with on_device(x):
        exponent12_gemv_kernel[(triton.cdiv(rows, launch.rows),)](
            x, *_words(packed), bias, out, x.stride(0), out.stride(0), rows, inputs, COUNT=x.shape[0],
            BATCH=max(batch, LEAST_NARROW) if launch.stages else batch, ROW_COUNT=launch.rows,
            COLUMN_COUNT=launch.columns, EVEN=inputs % launch.columns == 0, BIASED=bias is not None,
            STAGES=launch.stages, TYPE=_operand_type(), num_warps=launch.warps,
        )  # fmt: skip
    return out


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
    codes, indices, lowest, starts, places, values = _words(packed)
    with on_device(out):
        grid = (triton.cdiv(rows, ROWS), triton.cdiv(inputs, UNPACKED_COLUMNS))
        exponent12_codes_kernel[grid](
            codes, indices, lowest, out.view(torch.int32), rows, inputs, ROW_COUNT=ROWS,
            COLUMN_COUNT=UNPACKED_COLUMNS, num_warps=8,
        )  # fmt: skip
        exponent12_listed_kernel[(triton.cdiv(rows, ROWS),)](
            starts, places, values.view(torch.int16), out.view(torch.int16), BLOCK=32, num_warps=1
        )
    return out


def _words(packed: Packed) -> tuple[torch.Tensor, ...]:
    codes, indices, *others = packed
    return codes.view(torch.int32), indices.view(torch.int32), *others


def _operand_type() -> tl.dtype:
    return tl.float32 if triton_interprets() else tl.bfloat16  # the interpreter multiplies the bits of bfloat16
