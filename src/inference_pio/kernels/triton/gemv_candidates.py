"""What may launch a product of a few rows: a few dozen ways that fit a GPU, the likeliest first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from inference_pio.kernels.triton.gemv_choice import (
    EXACT_WEIGHTS,
    FOLDS,
    choose_exact_launch,
    choose_gemv_launch,
    parts_by_rule,
)
from inference_pio.kernels.triton.gemv_launch import (
    HELD,
    HELD_WORDS,
    LOAD_BYTES,
    MATRIX_COLUMNS,
    MATRIX_ROWS,
    THREADS,
    WORD_BYTES,
    GemvLaunch,
    takes_parts,
)
from inference_pio.kernels.triton.group_codes import CODES_OF_A_WORD
from inference_pio.kernels.triton.launch import Limits
from inference_pio.kernels.triton.overlap import FIRST_OVERLAPPING

MOST_CANDIDATES = 40
MOST_SUMS = 64
"""Sums that a thread may hold, of each row of x with each row of the weights: more leave no registers for loads."""
MOST_GROUP_SUMS = 16
"""The same for codes in groups, whose words, grids and parts of x are held beside."""
MOST_EXACT_WEIGHTS = 64
"""Weights in 12 bits that a thread may make in one step, for each row of x."""
MOST_READ_BYTES = 128
"""Weights that a thread may have under way in one tile."""


@dataclass(frozen=True)
class GemvProblem:
    """What is launched again and again: `batch` rows of `inputs`, weights of `outputs` rows, what stands around them.

    `outputs` of a gated product are those of gate and up, two of them, even where one tensor holds both. `group`: so
    many weights of half a byte share a grid; 0 for all others. `exact_columns`: weights are bfloat16 in 12 bits, and a
    step of plain ones, whose bits come out, has so many columns; 0 for all others.
    """

    batch: int
    inputs: int
    outputs: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16
    int8: bool = False
    fp8: bool = False
    group: int = 0
    exact_columns: int = 0
    normed: bool = False
    gated: bool = False
    added: bool = False
    out_dtype: torch.dtype | None = None
    dependent: bool = False

    @property
    def weight_bytes(self) -> float:
        if self.group:
            return 0.5
        return 1 if self.int8 or self.fp8 else self.dtype.itemsize

    def key(self) -> str:
        """Its name in a file.

        >>> GemvProblem(1, 2560, (4096, 1024, 1024), normed=True).key()
        '1 x 2560 x 4096+1024+1024 bfloat16 normed'
        """
        said = [f"{self.batch} x {self.inputs} x {'+'.join(map(str, self.outputs))}", _name(self.dtype)]
        said += [word for word in ("int8", "fp8", "normed", "gated", "added", "dependent") if getattr(self, word)]
        said += [f"int4 in groups of {self.group}"] if self.group else []
        said += [f"exponent12 by {self.exact_columns}"] if self.exact_columns else []
        return " ".join([*said, *([f"out {_name(self.out_dtype)}"] if self.out_dtype else [])])


def launch_by_rule(problem: GemvProblem, limits: Limits) -> GemvLaunch:
    """The launch that is chosen without timing."""
    if problem.exact_columns:
        return choose_exact_launch(
            limits, sum(problem.outputs), problem.exact_columns, gated=problem.gated, dependent=problem.dependent
        )
    return choose_gemv_launch(
        limits, problem.batch, sum(problem.outputs), problem.inputs, problem.weight_bytes, gated=problem.gated,
        group=problem.group, dependent=problem.dependent, bfloat16=problem.dtype is torch.bfloat16, fp8=problem.fp8,
    )  # fmt: skip


def candidates(problem: GemvProblem, limits: Limits) -> list[GemvLaunch]:
    """At most 40 launches: the one that is chosen without timing, then others, those like it first.

    Of 25 products of weights of two bytes that were tried whole on an H100, 19 to 57 launches each, the first takes at
    most 6% more than the fastest, and one of the first six at most 5%.
    """
    first = launch_by_rule(problem, limits)
    if problem.exact_columns:
        return list(dict.fromkeys([first, *_of_exact_columns(problem, first.dependent)]))
    overlaps = problem.dependent and limits.capability >= FIRST_OVERLAPPING
    by_threads = sorted(_by_threads(problem, overlaps), key=lambda launch: _far(problem, launch, first))
    found = [first, *_by_matrix_units(problem, limits), *by_threads]
    return list(dict.fromkeys(found))[:MOST_CANDIDATES]


def _of_exact_columns(problem: GemvProblem, dependent: bool) -> Iterator[GemvLaunch]:
    """Those by which a thread makes 32 weights a step, then 16, then others; few rows and whole steps first."""
    together, likely = problem.batch * (2 if problem.gated else 1), (EXACT_WEIGHTS, EXACT_WEIGHTS // 2)
    tried = itertools.product((1, 2, 4, 8), (1, 2, 4, 8), FOLDS)
    for rows, warps, folds in sorted(tried, key=lambda one: [_made(problem, *one) != made for made in likely]):
        columns = problem.exact_columns // folds
        held = columns // (THREADS * warps)  # of a row, by a thread
        fits = 8 <= held <= 32 and together * rows * held <= MOST_EXACT_WEIGHTS
        if fits and rows <= max(problem.outputs):
            yield GemvLaunch(rows, columns, warps, dependent=dependent)


def _made(problem: GemvProblem, rows: int, warps: int, folds: int) -> int:
    """Weights that a thread makes in one step."""
    return rows * (2 if problem.gated else 1) * problem.exact_columns // (folds * THREADS * warps)


def _by_threads(problem: GemvProblem, dependent: bool) -> Iterator[GemvLaunch]:
    together = 2 if problem.gated else 1
    if problem.group:
        yield from _of_groups(problem, dependent)
        return
    for rows, columns, warps in itertools.product((1, 2, 4, 8), (256, 512, 1024, 2048, 4096), (1, 2, 4, 8)):
        held_bytes = columns * problem.weight_bytes / (THREADS * warps)
        sums = problem.batch * rows * together * max(1.0, held_bytes / LOAD_BYTES)
        fits = sums <= MOST_SUMS and rows * together * held_bytes <= MOST_READ_BYTES and held_bytes >= LOAD_BYTES / 2
        if fits and columns < 2 * problem.inputs and rows <= max(problem.outputs):
            yield GemvLaunch(rows, columns, warps, dependent=dependent)


def _of_groups(problem: GemvProblem, dependent: bool) -> Iterator[GemvLaunch]:
    together = 2 if problem.gated else 1
    for rows, words, warps in itertools.product((1, 2, 4, 8), (4, 2), (1, 2, 4, 8)):
        columns = THREADS * warps * words * CODES_OF_A_WORD
        sums = problem.batch * rows * together
        if sums <= MOST_GROUP_SUMS and columns < 2 * problem.inputs and rows <= max(problem.outputs):
            yield GemvLaunch(rows, columns, warps, dependent=dependent)


def _by_matrix_units(problem: GemvProblem, limits: Limits) -> Iterator[GemvLaunch]:
    if problem.dtype is not torch.bfloat16:
        return
    overlaps = problem.dependent and limits.capability >= FIRST_OVERLAPPING and problem.batch <= 2
    if problem.group == MATRIX_COLUMNS:
        if problem.batch <= 2:
            yield from _held(problem, limits, overlaps)
        several = ((4, 2, 8, 1), (1, 2), (3, 4), (MATRIX_ROWS, 2 * MATRIX_ROWS))
        for warps, times, stages, rows in itertools.product(*several):
            if MATRIX_COLUMNS * warps * times < 2 * problem.inputs:
                yield GemvLaunch(rows, MATRIX_COLUMNS * warps * times, warps, stages, overlaps)
    if problem.fp8 and problem.inputs % (WORD_BYTES * HELD_WORDS) == 0:
        for warps in (4, 2, 8):
            yield GemvLaunch(MATRIX_ROWS, WORD_BYTES * HELD_WORDS * warps, warps, HELD, overlaps)
    if problem.batch == 1 or problem.group:
        return
    together = 2 if problem.gated else 1
    for rows, warps, stages in itertools.product((MATRIX_ROWS, 2 * MATRIX_ROWS), (1, 2, 4), (3, 4)):
        columns = MATRIX_COLUMNS * warps
        tile_bytes = columns * (rows * together * problem.weight_bytes + 16 * problem.dtype.itemsize)
        if stages * tile_bytes <= limits.shared_bytes and columns < 2 * problem.inputs:
            yield GemvLaunch(rows, columns, warps, stages)


def _held(problem: GemvProblem, limits: Limits, dependent: bool) -> Iterator[GemvLaunch]:
    """Weights in groups that wait in registers: rows in parts where rows alone are too few tiles, whole first where
    they are not; a group a warp and step."""
    few = parts_by_rule(limits, problem.batch, sum(problem.outputs), problem.inputs, problem.gated) > 1
    several = ((2, 4), (4, 2), (1, 8), (2, 2), (4, 4)) if few else ((1, 4), (1, 2), (2, 2), (2, 1), (1, 8))
    for parts, warps in several:
        groups = problem.inputs // (MATRIX_COLUMNS * parts)
        if takes_parts(parts, problem.batch, problem.inputs) and warps < 2 * groups:
            yield GemvLaunch(MATRIX_ROWS // parts, MATRIX_COLUMNS * warps, warps, HELD, dependent, parts)


def _far(problem: GemvProblem, launch: GemvLaunch, first: GemvLaunch) -> tuple[float, ...]:
    """How far a launch lies from the one by rule, in doublings; of codes in groups, from whole tiles of few rows."""
    if problem.group:  # rows share what is done to x; whole rows of words
        return (abs(launch.rows.bit_length() - 3) + (problem.inputs % launch.columns > 0), launch.warps, launch.columns)
    doublings = [
        abs(one.bit_length() - other.bit_length()) for one, other in zip(_numbers(launch), _numbers(first), strict=True)
    ]
    return (sum(doublings), launch.columns, launch.warps)


def _numbers(launch: GemvLaunch) -> tuple[int, ...]:
    return launch.rows, launch.columns, launch.warps


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
