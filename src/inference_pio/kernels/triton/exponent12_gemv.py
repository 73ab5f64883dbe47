"""A row or two times bfloat16 weights in 12 bits, with norm, biases, gate and residual, in one launch.

Every bit is what `kernels.triton.gemv.gemv` gives for the plain weights in a launch of `columns` a step, whose threads
have four of a row or more. Its own launch may have as many, or a half or a quarter; rows and warps do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

import triton
import triton.language as tl
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.exponent12 import COLUMNS, ROWS, Packed
from inference_pio.kernels.gemv import Optionals, gemv_parts
from inference_pio.kernels.triton.exponent12_sums import exact_sums_by_threads
from inference_pio.kernels.triton.gemv import biases_of, three
from inference_pio.kernels.triton.gemv_choice import FOLDS, choose_exact_launch, choose_gemv_launch
from inference_pio.kernels.triton.gemv_ends import finished, gated_by, read_vector
from inference_pio.kernels.triton.gemv_launch import MOST_EXACT_ROWS, THREADS, GemvLaunch
from inference_pio.kernels.triton.launch import device_limits, on_device
from inference_pio.kernels.triton.ordered_sums import NEIGHBOURS
from inference_pio.kernels.triton.overlap import overlapping
from inference_pio.kernels.triton.support import ELEMENTWISE_DTYPES, Cause, Support, require, supports_device


@triton.jit(
    do_not_specialize=["residual_step", "out_step", "rows_0", "rows_1", "rows_2", "eps"],
    do_not_specialize_on_alignment=[
        "lowest_0", "lowest_1", "lowest_2", "listed_0", "listed_1", "listed_2", "starts_0", "starts_1", "starts_2",
        "places_0", "places_1", "places_2", "values_0", "values_1", "values_2", "bias_0", "bias_1", "bias_2",
        "residual", "out",
    ],
)  # fmt: skip
def exact_gemv_kernel(
    x, norm_weight, codes_0, codes_1, codes_2, indices_0, indices_1, indices_2, lowest_0, lowest_1, lowest_2,
    listed_0, listed_1, listed_2, starts_0, starts_1, starts_2, places_0, places_1, places_2, values_0, values_1,
    values_2, bias_0, bias_1, bias_2, residual, out, x_step, residual_step, out_step, rows_0, rows_1, rows_2, inputs,
    eps,
    COUNT: tl.constexpr, BATCH: tl.constexpr, ROW_COUNT: tl.constexpr, COLUMN_COUNT: tl.constexpr, FOLDS: tl.constexpr,
    GROUP: tl.constexpr, EVEN: tl.constexpr, WORDS: tl.constexpr, WEIGHTS: tl.constexpr, NORMED: tl.constexpr,
    GATED: tl.constexpr, BIASED: tl.constexpr, ADDED: tl.constexpr, DEPENDENT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    program, before, which = tl.program_id(0), 0, 0
    codes, indices, lowest, starts, places, values = codes_0, indices_0, lowest_0, starts_0, places_0, values_0
    listed, rows, bias = listed_0, rows_0, bias_0
    if WEIGHTS > 1 and not GATED:
        past = program >= tl.cdiv(rows_0, ROW_COUNT)
        program, before = tl.where(past, program - tl.cdiv(rows_0, ROW_COUNT), program), tl.where(past, rows_0, 0)
        codes, indices = tl.where(past, codes_1, codes), tl.where(past, indices_1, indices)
        lowest, starts = tl.where(past, lowest_1, lowest), tl.where(past, starts_1, starts)
        places, values = tl.where(past, places_1, places), tl.where(past, values_1, values)
        listed, rows, which = tl.where(past, listed_1, listed), tl.where(past, rows_1, rows), past.to(tl.int32)
        if BIASED:
            bias = tl.where(past, bias_1, bias)
        if WEIGHTS > 2:
            past = past & (program >= tl.cdiv(rows_1, ROW_COUNT))
            program = tl.where(past, program - tl.cdiv(rows_1, ROW_COUNT), program)
            before, which = tl.where(past, rows_0 + rows_1, before), which + past.to(tl.int32)
            codes, indices = tl.where(past, codes_2, codes), tl.where(past, indices_2, indices)
            lowest, starts = tl.where(past, lowest_2, lowest), tl.where(past, starts_2, starts)
            places, values = tl.where(past, places_2, places), tl.where(past, values_2, values)
            listed, rows = tl.where(past, listed_2, listed), tl.where(past, rows_2, rows)
            if BIASED:
                bias = tl.where(past, bias_2, bias)

    first = program * ROW_COUNT
    row = first + tl.arange(0, ROW_COUNT)
    held = tl.minimum(row, rows - 1)
    biases = read_vector(bias, held, ((BIASED >> which) & 1) != 0, BIASED)
    if GATED:
        up_biases = read_vector(bias_1, held, (BIASED & 2) != 0, BIASED)
    batch, column = tl.arange(0, BATCH)[:, None], (before + row)[None, :]
    stored = (batch < COUNT) & (row < rows)[None, :]
    residual_places = out
    if ADDED:
        residual_places = residual + batch * residual_step + column
    total, up, squares, added = exact_sums_by_threads(
        x, norm_weight, codes, indices, lowest, listed, starts, places, values, codes_1, indices_1, lowest_1, listed_1,
        starts_1, places_1, values_1, first, rows, residual_places, stored, x_step, inputs, COUNT, BATCH, ROW_COUNT,
        COLUMN_COUNT, FOLDS, GROUP, EVEN, WORDS, NORMED, GATED, ADDED, DEPENDENT, INTERPRETED,
    )  # fmt: skip
    normal = tl.rsqrt(squares / inputs + eps)
    total = finished(total, normal, 0.0, biases, tl.bfloat16, NORMED, False, BIASED)
    if GATED:
        total = gated_by(total, finished(up, normal, 0.0, up_biases, tl.bfloat16, NORMED, False, BIASED))
    total += added.to(tl.float32)
    tl.store(out + batch * out_step + column, total.to(out.dtype.element_ty), mask=stored)


LEAST_COLUMNS = NEIGHBOURS * THREADS
"""Of a step: with fewer, threads of the plain kernel have less than four of a row, and add them in another order."""


def supports_exact_gemv(
    x: torch.Tensor, packs: Sequence[Packed], *beside: torch.Tensor | None, biases: Optionals = ()
) -> Support:
    """Whether the kernel multiplies one or two rows `x` [M, K] with packed matrices; `beside`: what else it reads and
    writes."""
    added = [bias for bias in biases if bias is not None]
    given = [x, *added, *(tensor for tensor in beside if tensor is not None)]
    parts = [part for pack in packs for part in pack]
    if any(tensor.dtype not in ELEMENTWISE_DTYPES for tensor in given):
        return Support(Cause.DTYPE, f"it is for bfloat16, float16 or float32, and x is {x.dtype}")
    if len({bias.dtype for bias in added}) > 1:
        return Support(Cause.DTYPE, "biases of several dtypes were given")
    if not 1 <= len(x) <= MOST_EXACT_ROWS:
        return Support(Cause.SHAPE, f"it is for 1 to {MOST_EXACT_ROWS} rows, and x has {len(x)}")
    if any(tensor.stride(-1) != 1 for tensor in given) or not all(part.is_contiguous() for part in parts):
        return Support(Cause.LAYOUT, "the elements of a row do not lie side by side")
    if any(tensor.device != x.device for tensor in (*given, *parts)):
        return Support(Cause.DEVICE, "its tensors are on different devices")
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return Support(Cause.GRADIENT, "it has no backward pass")
    return supports_device(x.device)


def codes_of_thread(launch: GemvLaunch) -> int:
    """How many codes a thread reads of a row at a time: so many that a warp holds one row, if it can.

    >>> codes_of_thread(GemvLaunch(1, 512, 1)), codes_of_thread(GemvLaunch(1, 256, 1))
    (16, 8)
    """
    return COLUMNS if launch.columns >= COLUMNS * THREADS * launch.warps else COLUMNS // 2


def exact_gemv(
    x: torch.Tensor,
    weights: Sequence[Packed],
    *,
    biases: Optionals | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    columns: int | None = None,
    launch: GemvLaunch | None = None,
) -> torch.Tensor:
    """What `kernels.triton.gemv.gemv` gives for the weights that are packed, to the bit, for one or two rows of x.

    The launch that is compared with has so many `columns` and no `stages`; where none are given, those of `launch`, or
    of the plain one by rule. Raises InvalidSetting for what `supports_exact_gemv` refuses, and for a launch whose
    programs would not lie within runs of 16 rows, or whose columns are not a whole, a half or a quarter of those.
    """
    sizes = [torch.empty(pack.codes.shape, dtype=x.dtype, device="meta") for pack in weights]
    parts = gemv_parts(x, sizes, biases=biases, norm_weight=norm_weight, gated=gated, residual=residual, out=out)
    if gated and len(weights) != 2:
        raise InvalidSetting(f"{len(weights)} packed weights were given for gate and up: give two.")
    require(supports_exact_gemv(x, weights, norm_weight, residual, out, biases=biases or ()))
    limits, rows = device_limits(x.device), sum(len(pack.codes) for pack in weights)
    if columns is None:
        plain = launch or choose_gemv_launch(limits, len(x), rows, x.shape[1], 2, gated=gated)
        columns = plain.columns
    launch = launch or choose_exact_launch(limits, rows, columns, gated=gated)
    launch.require(limits, x.dtype)
    if launch.rows > ROWS or launch.columns < LEAST_COLUMNS or launch.stages:
        raise InvalidSetting(
            f"{launch} is none here: up to {ROWS} rows, {LEAST_COLUMNS} columns or more, without `stages`."
        )
    if columns not in (folds * launch.columns for folds in FOLDS):
        raise InvalidSetting(
            f"{launch} does not give the bits of steps of {columns} columns: take that many, a half or a quarter."
        )
    out = x.new_empty(len(x), parts.columns) if out is None else out
    with on_device(x):
        _launch(x, weights, biases, norm_weight, eps, gated, residual, out, launch, columns)
    return out


def _launch(
    x: torch.Tensor, weights: Sequence[Packed], biases: Optionals | None, norm_weight: torch.Tensor | None, eps: float,
    gated: bool, residual: torch.Tensor | None, out: torch.Tensor, launch: GemvLaunch, columns: int,
) -> None:  # fmt: skip
    counts, inputs = [len(pack.codes) for pack in weights], x.shape[1]
    in_words = [tensor for tensor in (x, norm_weight) if tensor is not None]
    has_words = all(_lies_in_words(tensor) for tensor in in_words)
    if has_words:
        x, norm_weight = x.view(torch.int32), None if norm_weight is None else norm_weight.view(torch.int32)
    biases, has_bias = biases_of(biases)
    words = [
        (p.codes.view(torch.int32), p.indices.view(torch.int32), *p[2:6], p.values.view(torch.int16)) for p in weights
    ]
    programs = sum(triton.cdiv(count, launch.rows) for count in (counts[:1] if gated else counts))
    exact_gemv_kernel[(programs,)](
        x, norm_weight, *(part for parts in zip(*words, strict=True) for part in three(parts)), *three(biases),
        residual, out, x.stride(0), 0 if residual is None else residual.stride(0), out.stride(0), *three(counts, 0),
        inputs, float(eps), COUNT=len(x), BATCH=triton.next_power_of_2(len(x)), ROW_COUNT=launch.rows,
        COLUMN_COUNT=launch.columns, FOLDS=columns // launch.columns, GROUP=codes_of_thread(launch),
        EVEN=inputs % columns == 0, WORDS=has_words, WEIGHTS=len(weights), NORMED=norm_weight is not None, GATED=gated,
        BIASED=has_bias, ADDED=residual is not None, num_warps=launch.warps, **overlapping(launch.dependent),
    )  # fmt: skip


def _lies_in_words(given: torch.Tensor) -> bool:
    """Whether two bfloat16 numbers each begin where a word of four bytes does, in every row."""
    starts = (given.storage_offset(), *given.stride()[:-1])
    return given.dtype is torch.bfloat16 and given.data_ptr() % 4 == 0 and all(start % 2 == 0 for start in starts)
