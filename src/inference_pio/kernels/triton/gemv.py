"""A few rows times large matrices, with norm, scales, biases, gate and residual, in one launch.

The plain truth is `kernels.gemv.naive_gemv`. Each weight is read once. A program makes a few columns
of the result; its tiles are split into what a thread holds of a row, so that threads add up their own products and meet
once, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import triton
import triton.language as tl
from inference_pio.kernels.gemv import GemvParts, Optionals, gemv_parts
from inference_pio.kernels.triton.gemv_choice import choose_gemv_launch
from inference_pio.kernels.triton.gemv_ends import finished, gated_by, read_vector
from inference_pio.kernels.triton.gemv_launch import (
    HELD_WORDS,
    MATRIX_COLUMNS,
    NARROW,
    WORD_BYTES,
    GemvLaunch,
    codes_held,
    lanes,
    weight_bytes,
)
from inference_pio.kernels.triton.gemv_sums import sums_by_matrix_units, sums_by_threads
from inference_pio.kernels.triton.group_codes import sums_by_groups
from inference_pio.kernels.triton.group_units import sums_by_group_units
from inference_pio.kernels.triton.held_units import sums_by_held_units
from inference_pio.kernels.triton.launch import device_limits, on_device
from inference_pio.kernels.triton.overlap import overlapping
from inference_pio.kernels.triton.row_codes import as_read
from inference_pio.kernels.triton.row_support import supports_gemv
from inference_pio.kernels.triton.support import require


@triton.jit(
    do_not_specialize=["residual_step", "out_step", "rows_0", "rows_1", "rows_2", "eps"],
    do_not_specialize_on_alignment=[
        "scale_0", "scale_1", "scale_2", "bias_0", "bias_1", "bias_2", "residual", "out",
    ],
)  # fmt: skip
def gemv_kernel(
    x, norm_weight, weight_0, weight_1, weight_2, scale_0, scale_1, scale_2, bias_0, bias_1, bias_2, residual, out,
    x_step, step_0, step_1, step_2, grid_step_0, grid_step_1, grid_step_2, residual_step, out_step,
    rows_0, rows_1, rows_2, inputs, eps,
    COUNT: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, HALVES: tl.constexpr,
    LANE: tl.constexpr, EVEN: tl.constexpr, WEIGHTS: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr,
    SCALED: tl.constexpr, GROUP: tl.constexpr, BIASED: tl.constexpr, ADDED: tl.constexpr, DEPENDENT: tl.constexpr,
    STAGES: tl.constexpr, PARTS: tl.constexpr, CODES: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    # Which weight: a choice between values knows how aligned both are.
    program, first, which = tl.program_id(0), 0, 0
    weight, step, rows, scale, bias, grid_step = weight_0, step_0, rows_0, scale_0, bias_0, grid_step_0
    if WEIGHTS > 1 and not GATED:
        past = program >= tl.cdiv(rows_0, ROWS)
        program, first = tl.where(past, program - tl.cdiv(rows_0, ROWS), program), tl.where(past, rows_0, 0)
        weight, step = tl.where(past, weight_1, weight), tl.where(past, step_1, step)
        rows, grid_step = tl.where(past, rows_1, rows), tl.where(past, grid_step_1, grid_step)
        which = past.to(tl.int32)
        if SCALED:
            scale = tl.where(past, scale_1, scale)
        if BIASED:
            bias = tl.where(past, bias_1, bias)
        if WEIGHTS > 2:
            past = past & (program >= tl.cdiv(rows_1, ROWS))
            program = tl.where(past, program - tl.cdiv(rows_1, ROWS), program)
            first, which = tl.where(past, rows_0 + rows_1, first), which + past.to(tl.int32)
            weight, step = tl.where(past, weight_2, weight), tl.where(past, step_2, step)
            rows, grid_step = tl.where(past, rows_2, rows), tl.where(past, grid_step_2, grid_step)
            if SCALED:
                scale = tl.where(past, scale_2, scale)
            if BIASED:
                bias = tl.where(past, bias_2, bias)

    row = program * ROWS + tl.arange(0, ROWS)
    held = tl.minimum(row, rows - 1)
    ROW_SCALED: tl.constexpr = SCALED and GROUP == 0
    scales = read_vector(scale, held, True, ROW_SCALED)
    biases = read_vector(bias, held, ((BIASED >> which) & 1) != 0, BIASED)
    places = weight + held.to(tl.int64) * step
    up_places = places
    if GATED:
        up_scales = read_vector(scale_1, held, True, ROW_SCALED)
        up_biases = read_vector(bias_1, held, (BIASED & 2) != 0, BIASED)
        up_places = weight_1 + held.to(tl.int64) * step_1
    batch, column = tl.arange(0, BATCH)[:, None], (first + row)[None, :]
    stored = (batch < COUNT) & (row < rows)[None, :]
    residual_places = out
    if ADDED:
        residual_places = residual + batch * residual_step + column
    if CODES:
        ahead = (program * ROWS).to(tl.int64)  # places behind it are small numbers, which one instruction adds
        total, up, squares, added = sums_by_held_units(
            x, norm_weight, weight + ahead * step, weight_1 + ahead * step_1 if GATED else weight, step, step_1,
            scale + ahead if GROUP else scale, scale_1 + ahead if GROUP and GATED else scale, residual_places, stored,
            x_step, inputs, grid_step, grid_step_1, rows - 1 - program * ROWS, COUNT, HALVES, ROWS, PARTS, LANE, CODES,
            EVEN, NORMED, GATED, ADDED, DEPENDENT, INTERPRETED,
        )  # fmt: skip
    elif GROUP and STAGES:
        ahead = (program * ROWS).to(tl.int64)  # places behind it are small numbers, which one instruction adds
        behind = held - program * ROWS
        total, up, squares, added = sums_by_group_units(
            x, norm_weight, weight + ahead * step, weight_1 + ahead * step_1 if GATED else weight, behind * step,
            behind * step_1 if GATED else behind, scale + held, scale_1 + held if GATED else scale, residual_places,
            stored, x_step, inputs, grid_step, grid_step_1, COUNT, HALVES, ROWS, LANE, EVEN, NORMED, GATED, ADDED,
            DEPENDENT, STAGES, INTERPRETED,
        )  # fmt: skip
    elif GROUP:
        grids = scale + held
        up_grids = scale_1 + held if GATED else grids
        total, up, squares, added = sums_by_groups(
            x, norm_weight, places, up_places, grids, up_grids, residual_places, stored, x_step, inputs, grid_step,
            grid_step_1, COUNT, BATCH, ROWS, COLUMNS, LANE, GROUP, EVEN, NORMED, GATED, ADDED, DEPENDENT,
            INTERPRETED,
        )  # fmt: skip
    elif STAGES:
        total, up, squares, added = sums_by_matrix_units(
            x, norm_weight, places, up_places, residual_places, stored, x_step, inputs, COUNT, BATCH, ROWS, COLUMNS,
            EVEN, NORMED, GATED, ADDED, DEPENDENT, STAGES, INTERPRETED,
        )  # fmt: skip
    else:
        total, up, squares, added = sums_by_threads(
            x, norm_weight, places, up_places, residual_places, stored, x_step, inputs, COUNT, BATCH, ROWS, COLUMNS,
            HALVES, LANE, EVEN, NORMED, GATED, ADDED, DEPENDENT, INTERPRETED,
        )  # fmt: skip

    normal = tl.rsqrt(squares / inputs + eps)
    TYPE: tl.constexpr = weight_0.dtype.element_ty
    total = finished(total, normal, scales, biases, TYPE, NORMED, ROW_SCALED, BIASED)
    if GATED:
        total = gated_by(total, finished(up, normal, up_scales, up_biases, TYPE, NORMED, ROW_SCALED, BIASED))
    total += added.to(tl.float32)
    tl.store(out + batch * out_step + column, total.to(out.dtype.element_ty), mask=stored)


def gemv(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    *,
    scales: Sequence[torch.Tensor] | None = None,
    biases: Optionals | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    launch: GemvLaunch | None = None,
) -> torch.Tensor:
    """`kernels.gemv.gemv` for 1 to 8 rows, in one launch; everything between reading and writing is float32.

    `out` may be `residual` itself, and must not otherwise overlap what is read. Nothing is allocated where it is given;
    nothing waits for the device. A dependent `launch` begins before the kernel in front of it has ended, which must not
    write weights, scales or biases. Raises InvalidSetting for tensors that `supports_gemv` refuses.
    """
    parts = gemv_parts(
        x, weights, scales=scales, biases=biases, norm_weight=norm_weight, gated=gated, residual=residual, out=out
    )
    require(supports_gemv(x, parts, norm_weight, residual, out))
    limits = device_limits(x.device)
    if launch is None:
        rows = parts.weights[0].shape[0] * len(parts.weights) if gated else parts.columns
        launch = choose_gemv_launch(
            limits, parts.rows, rows, parts.inputs, weight_bytes(parts.weights[0], parts.group), gated=gated,
            group=parts.group, bfloat16=x.dtype is torch.bfloat16, fp8=parts.weights[0].dtype is torch.uint8,
        )  # fmt: skip
    launch.require(limits, x.dtype, parts.group, batch=parts.rows, inputs=parts.inputs)
    out = x.new_empty(parts.rows, parts.columns) if out is None else out
    with on_device(x):
        _launch(x, parts, norm_weight, eps, gated, residual, out, launch)
    return out


def _launch(
    x: torch.Tensor, parts: GemvParts, norm_weight: torch.Tensor | None, eps: float, gated: bool,
    residual: torch.Tensor | None, out: torch.Tensor, launch: GemvLaunch,
) -> None:  # fmt: skip
    weights, counts = parts.weights, [weight.shape[0] for weight in parts.weights]
    biases, has_bias = biases_of(parts.biases)
    halves, lane = lanes(launch, x.element_size(), weight_bytes(weights[0], parts.group))
    words = all(weight.stride(0) % WORD_BYTES == 0 and weight.storage_offset() % WORD_BYTES == 0 for weight in weights)
    codes = codes_held(launch, weights[0].dtype, parts.group, parts.inputs) if parts.group or words else 0
    if codes or (parts.group and launch.stages):  # rows of x, and groups of a step
        halves = triton.next_power_of_2(parts.rows)
        lane = launch.columns // (codes * HELD_WORDS if codes else MATRIX_COLUMNS)
    scales = [in_words(scale) for scale in parts.scales] if parts.group and parts.scales else parts.scales or ()
    batch = triton.next_power_of_2(parts.rows)
    programs = sum(triton.cdiv(count, launch.rows) for count in (counts[:1] if gated else counts))
    # Matrix units take bits of fp8: numbers would not all stay in registers.
    read = list(weights) if launch.stages else [as_read(weight) for weight in weights]
    if codes:
        read = [weight.view(torch.int32) for weight in weights]
    gemv_kernel[(programs,)](
        x, norm_weight, *three(read), *three(scales), *three(biases), residual,
        out, x.stride(0),
        *three([weight.stride(0) for weight in read], 0),
        *three([scale.stride(0) for scale in scales] if parts.group else (), 0),
        0 if residual is None else residual.stride(0),
        out.stride(0), *three(counts, 0), parts.inputs, float(eps),
        COUNT=parts.rows, BATCH=NARROW // launch.parts if launch.stages else batch, ROWS=launch.rows,
        COLUMNS=launch.columns, HALVES=halves, LANE=lane, EVEN=parts.inputs % (launch.columns * launch.parts) == 0,
        WEIGHTS=len(weights), NORMED=norm_weight is not None, GATED=gated, SCALED=parts.scales is not None,
        GROUP=parts.group, BIASED=has_bias, ADDED=residual is not None, STAGES=launch.stages, PARTS=launch.parts,
        CODES=codes, num_warps=launch.warps, **overlapping(launch.dependent),
    )  # fmt: skip


def in_words(grids: torch.Tensor) -> torch.Tensor:
    """Grids [groups, N, 2] of two bytes each as words [groups, N], which one load takes."""
    return grids.view(torch.int32)[..., 0]


def biases_of(biases: Optionals | None) -> tuple[Sequence[torch.Tensor], int]:
    """A bias for every weight, and a bit for each that is meant: the others stand for none and are never read."""
    meant = [bias for bias in biases or () if bias is not None]
    if not meant:
        return (), 0
    return (
        [meant[0] if bias is None else bias for bias in biases],
        sum(1 << place for place, bias in enumerate(biases) if bias is not None),
    )


def three(given: Sequence[Any], missing: Any = None) -> Sequence[Any]:
    return [*given, *(missing for _ in range(3 - len(given)))]
