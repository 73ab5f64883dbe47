"""Launches that nothing was timed for: near the fastest where that is known, enough under way elsewhere."""

from __future__ import annotations

import itertools

import pytest
import torch

from inference_pio.kernels.triton.gemv_choice import (
    BYTES_UNDER_WAY,
    MEASURED_CODES,
    MOST_RESIDENT,
    choose_gemv_launch,
)
from inference_pio.kernels.triton.gemv_launch import GemvLaunch, lanes
from inference_pio.kernels.triton.launch import AMPERE, HOPPER, Limits

SHAPES = [(6144, 2560), (2560, 4096), (19456, 2560), (2560, 9728), (151936, 2560), (1, 64), (1024, 2560), (32, 2048),
          (768, 2048), (2048, 768), (5120, 5120), (4097, 1001)]  # fmt: skip
FASTEST = [
    (6144, 2560, False, (2, 512, 1)), (2560, 4096, False, (1, 2048, 1)), (2560, 9728, False, (1, 2048, 4)),
    (19456, 2560, True, (1, 1024, 1)), (151936, 2560, False, (2, 512, 1)), (704, 2560, False, (1, 4096, 2)),
    (19456, 704, True, (2, 512, 1)), (576, 9728, False, (1, 2048, 8)), (2560, 576, False, (2, 1024, 1)),
    (2560, 512, False, (4, 512, 1)), (6144, 4096, False, (2, 512, 1)), (4096, 4096, False, (1, 2048, 1)),
    (4096, 12288, False, (1, 2048, 4)), (24576, 4096, True, (1, 1024, 1)), (4096, 2048, False, (2, 1024, 1)),
    (2048, 2048, False, (1, 2048, 1)), (12288, 2048, True, (1, 1024, 1)), (2048, 6144, False, (1, 2048, 4)),
]  # fmt: skip
"""Rows, inputs, gated, and a launch at most 6% from the fastest of 19 to 57 for one row of x, measured on an H100."""


@pytest.mark.parametrize(("rows", "inputs", "gated", "fastest"), FASTEST, ids=str)
def test_one_row_of_x_is_launched_as_was_fast(
    rows: int, inputs: int, gated: bool, fastest: tuple[int, int, int]
) -> None:
    assert choose_gemv_launch(HOPPER, 1, rows, inputs, 2, gated=gated) == GemvLaunch(*fastest)
    assert choose_gemv_launch(HOPPER, 1, rows, inputs, 2, gated=gated, dependent=True).dependent
    assert choose_gemv_launch(HOPPER, 8, rows, inputs, 2, gated=gated).stages  # that was one row


@pytest.mark.parametrize("shape", MEASURED_CODES, ids=str)
def test_measured_shapes_of_codes_are_launched_as_measured(shape: tuple[int, int]) -> None:
    assert choose_gemv_launch(HOPPER, 1, *shape, 1) == MEASURED_CODES[shape]
    assert choose_gemv_launch(HOPPER, 2, *shape, 1) != MEASURED_CODES[shape]  # that was one row


def test_few_rows_of_codes_are_taken_one_by_one() -> None:
    assert choose_gemv_launch(HOPPER, 1, 2560, 4096, 1) == GemvLaunch(1, 2048, 2)
    assert choose_gemv_launch(HOPPER, 1, 151936, 2560, 1).rows == 2


@pytest.mark.parametrize("limits", [HOPPER, AMPERE])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_choice_can_be_launched(limits: Limits, shape: tuple[int, int]) -> None:
    for batch, weight_bytes, gated in itertools.product(range(1, 9), (1, 2, 4), (False, True)):
        launch = choose_gemv_launch(limits, batch, *shape, weight_bytes, gated=gated)
        launch.require(limits, torch.bfloat16)
        assert bool(launch.stages) is (batch > 2 or (batch > 1 and weight_bytes == 1))
        halves, lane = lanes(launch, max(2, weight_bytes), weight_bytes)
        assert launch.columns % (halves * lane * 32 * launch.warps) == 0


@pytest.mark.parametrize("shape", [(1024, 2560), (4096, 4096), (768, 2048), (40000, 1024)], ids=str)
def test_by_rule_a_multiprocessor_has_enough_to_wait_for(shape: tuple[int, int]) -> None:
    launch = choose_gemv_launch(HOPPER, 2, *shape, 2)
    programs = shape[0] // launch.rows // HOPPER.multiprocessors
    assert programs >= 4
    under_way = 2 * min(programs, MOST_RESIDENT) * launch.rows * launch.columns * 2
    assert under_way >= BYTES_UNDER_WAY / 4
    assert under_way <= BYTES_UNDER_WAY or launch.columns == 256  # no thread reads less than 16 bytes
    assert shape[1] % launch.columns == 0, "a masked tail is read for nothing"


def test_short_rows_are_held_whole_and_shared_where_they_are_many() -> None:
    held = {rows: choose_gemv_launch(HOPPER, 1, rows, 300, 2) for rows in (8192, 1024, 600, 1)}
    assert {rows: launch.rows for rows, launch in held.items()} == {8192: 4, 1024: 1, 600: 1, 1: 1}
    assert {launch.columns for launch in held.values()} == {512}
    assert choose_gemv_launch(HOPPER, 1, 8, 33, 2, gated=True) == GemvLaunch(1, 256, 1)


def test_overlapping_is_a_wish() -> None:
    assert not choose_gemv_launch(AMPERE, 1, 1024, 1024, 2, dependent=True).dependent


def test_many_rows_go_to_the_matrix_units_where_threads_would_be_slower_than_memory() -> None:
    for batch, weight_bytes, units in ((1, 2, False), (2, 2, False), (3, 2, True), (1, 1, False), (2, 1, True)):
        launch = choose_gemv_launch(HOPPER, batch, 6144, 2560, weight_bytes)
        assert bool(launch.stages) is units
        assert not choose_gemv_launch(HOPPER, batch, 6144, 2560, weight_bytes, bfloat16=False).stages


def test_rows_of_codes_are_cut_where_they_are_too_few_for_a_gpu() -> None:
    found = {inputs: choose_gemv_launch(HOPPER, 1, 2560, inputs, 0.5, group=128) for inputs in (4096, 9728, 768, 640)}
    assert {inputs: launch.parts for inputs, launch in found.items()} == {4096: 2, 9728: 2, 768: 2, 640: 1}
    assert all(launch.rows * launch.parts == 16 for launch in found.values())
    many, few = ((6144, 2560), (19456, 2560)), ((4096, 2560), (8192, 2560))
    for (plain, gated), parts in ((many, 1), (few, 2)):
        assert choose_gemv_launch(HOPPER, 1, *plain, 0.5, group=128).parts == parts
        assert choose_gemv_launch(HOPPER, 1, *gated, 0.5, group=128, gated=True).parts == parts
    assert choose_gemv_launch(HOPPER, 3, 2560, 4096, 0.5, group=128).parts == 1


@pytest.mark.parametrize("limits", [HOPPER, AMPERE])
@pytest.mark.parametrize(
    "shape", [(2560, 4096), (2560, 9728), (64, 128), (1000, 640), (33, 1024), (9728, 768)], ids=str
)
def test_every_choice_for_codes_in_groups_can_be_launched(limits: Limits, shape: tuple[int, int]) -> None:
    for batch, group, gated in itertools.product(range(1, 9), (32, 64, 128), (False, True)):
        launch = choose_gemv_launch(limits, batch, *shape, 0.5, gated=gated, group=group)
        launch.require(limits, torch.bfloat16, group, batch=batch, inputs=shape[1])
