"""Launches of the experts' kernels: powers of two, and nothing over at the end of a row where that is possible."""

from __future__ import annotations

import pytest

from inference_pio.kernels.triton.experts_launch import (
    RowLaunch,
    choose_down_launch,
    choose_gate_up_launch,
    choose_route_launch,
)


@pytest.mark.parametrize("width", [2048, 5120])
@pytest.mark.parametrize("element_bytes", [1, 2])
def test_real_widths_are_walked_in_whole_steps(width: int, element_bytes: int) -> None:
    for launch in (choose_route_launch(width), choose_gate_up_launch(width, element_bytes)):
        assert width % launch.columns == 0
        assert launch.columns & (launch.columns - 1) == 0


@pytest.mark.parametrize(("intermediate", "slots"), [(768, 8), (1536, 4), (1536, 8)])
@pytest.mark.parametrize("element_bytes", [1, 2])
def test_so_are_the_experts_own(intermediate: int, slots: int, element_bytes: int) -> None:
    launch = choose_down_launch(intermediate, slots, element_bytes)
    assert intermediate % launch.columns == 0
    assert slots * launch.columns * element_bytes >= 16 * 32 * launch.warps  # a wide load for every thread


def test_an_odd_width_has_its_last_step_cut() -> None:
    assert choose_route_launch(100) == RowLaunch(1, 128, 4)
    assert choose_route_launch(2100).columns == 1024
    assert choose_route_launch(1).columns == 16
