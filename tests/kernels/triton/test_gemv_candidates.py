"""Candidates can all be launched, the known launch is the first, and problems that differ have other names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from inference_pio.kernels.triton.gemv_candidates import MOST_CANDIDATES, GemvProblem, candidates
from inference_pio.kernels.triton.gemv_choice import choose_exact_launch, choose_gemv_launch
from inference_pio.kernels.triton.launch import AMPERE, HOPPER, Limits

PROBLEM = GemvProblem(2, 512, (96, 32), normed=True, added=True)
PROBLEMS = [
    PROBLEM,
    GemvProblem(1, 2560, (4096, 1024, 1024), normed=True),
    GemvProblem(8, 2560, (9728, 9728), gated=True, int8=True, dependent=True),
    GemvProblem(1, 2560, (151936,), out_dtype=torch.float32),
    GemvProblem(5, 9728, (2560,), dtype=torch.float32),
    GemvProblem(1, 64, (1,)),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=GemvProblem.key)
def test_candidates_are_launches_and_the_known_one_comes_first(problem: GemvProblem) -> None:
    for limits in (HOPPER, AMPERE):
        found = candidates(problem, limits)
        assert 1 <= len(found) == len(set(found)) <= MOST_CANDIDATES
        assert found[0] == choose_gemv_launch(
            limits, problem.batch, sum(problem.outputs), problem.inputs, problem.weight_bytes,
            gated=problem.gated, dependent=problem.dependent, bfloat16=problem.dtype is torch.bfloat16,
        )  # fmt: skip
        for launch in found:
            launch.require(limits, problem.dtype)
        assert problem.inputs < 512 or len(found) > 8
        several = problem.batch > 1 and problem.dtype is torch.bfloat16
        assert {bool(launch.stages) for launch in found} == ({True, False} if several else {False})


@pytest.mark.parametrize("limits", [HOPPER, AMPERE])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("outputs", "inputs"), [((2560,), 4096), ((2560,), 9728), ((4096, 1024, 1024), 2560)], ids=str)
def test_rows_of_codes_in_groups_are_cut_where_they_are_few(
    outputs: tuple[int, ...], inputs: int, batch: int, limits: Limits
) -> None:
    problem = GemvProblem(batch, inputs, outputs, group=128, dependent=True)
    found = candidates(problem, limits)
    assert 20 <= len(found) == len(set(found)) <= MOST_CANDIDATES
    assert found == candidates(problem, limits)
    for launch in found:
        launch.require(limits, torch.bfloat16, 128, batch=batch, inputs=inputs)
    parts = {launch.parts for launch in found}
    few = sum(outputs) < 32 * limits.multiprocessors and batch <= 2
    assert parts == ({1, 2, 4} if few else {1, 2} if batch <= 2 else {1})
    assert (found[0].parts > 1) is (few and (limits is HOPPER or inputs == 4096))


@pytest.mark.parametrize("columns", [256, 512, 2048])
@pytest.mark.parametrize("batch", [1, 2])
def test_weights_in_12_bits_take_steps_of_plain_ones_or_parts_of_them(batch: int, columns: int) -> None:
    for problem in (
        GemvProblem(batch, 4096, (2560,), added=True, exact_columns=columns),
        GemvProblem(batch, 2560, (9728, 9728), normed=True, gated=True, exact_columns=columns),
    ):
        found = candidates(problem, HOPPER)
        assert found[0] == choose_exact_launch(HOPPER, sum(problem.outputs), columns, gated=problem.gated)
        assert 2 <= len(found) == len(set(found)) <= MOST_CANDIDATES
        assert {columns // launch.columns for launch in found} <= {1, 2, 4}
        assert len({launch.columns for launch in found}) == (1 if columns == 256 else 2 if columns == 512 else 3)
        for launch in found:
            launch.require(HOPPER, problem.dtype)


def test_few_rows_take_wider_steps_of_weights_in_12_bits() -> None:
    few = [choose_exact_launch(HOPPER, 2560, columns) for columns in (256, 512, 1024, 2048, 8192)]
    assert [(launch.columns, launch.warps) for launch in few] == [(256, 1), (512, 1), (1024, 1), (1024, 2), (2048, 4)]
    many = [choose_exact_launch(HOPPER, 19456, columns, gated=True) for columns in (256, 512, 1024, 2048)]
    assert [launch.columns for launch in many] == [256, 512, 512, 512]
    assert [launch.rows for launch in many] == [2, 1, 1, 1]


def test_problems_that_differ_have_other_names() -> None:
    others = [
        replace(PROBLEM, **{name: value})
        for name, value in {
            "batch": 1, "inputs": 256, "outputs": (128,), "dtype": torch.float16, "int8": True, "normed": False,
            "gated": True, "added": False, "out_dtype": torch.float32, "dependent": True,
        }.items()
    ]  # fmt: skip
    assert len({PROBLEM.key(), *(problem.key() for problem in others)}) == 11
