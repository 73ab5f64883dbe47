"""Launches of the experts' kernels: powers of two, and nothing over at the end of a row where that is possible."""

from __future__ import annotations

import pytest

from inference_pio.kernels.triton.experts_launch import (
    RowLaunch,
    choose_absorb_launch,
    choose_down_launch,
    choose_expand_launch,
    choose_gate_up_launch,
    choose_route_launch,
)


@pytest.mark.parametrize("width", [2048, 5120])
@pytest.mark.parametrize("element_bytes", [1, 2])
def test_real_widths_are_walked_in_whole_steps(width: int, element_bytes: int) -> None:
    launch = choose_gate_up_launch(width, element_bytes)
    assert width % launch.columns == 0
    assert launch.columns & (launch.columns - 1) == 0


@pytest.mark.parametrize("width", [1, 100, 2048, 5120])
def test_a_router_takes_a_token_in_one_step(width: int) -> None:
    assert width <= choose_route_launch(width).columns <= max(16, 2 * width)


@pytest.mark.parametrize(("intermediate", "slots"), [(768, 8), (1536, 4), (1536, 8)])
@pytest.mark.parametrize("element_bytes", [1, 2])
def test_so_are_the_experts_own(intermediate: int, slots: int, element_bytes: int) -> None:
    launch = choose_down_launch(intermediate, slots, element_bytes)
    assert intermediate % launch.columns == 0
    assert slots * launch.columns * element_bytes >= 16 * 32 * launch.warps  # a wide load for every thread


def test_an_odd_width_has_its_last_step_cut() -> None:
    assert choose_gate_up_launch(100, 2) == RowLaunch(1, 128, 2)
    assert choose_gate_up_launch(2100, 2).columns == 512
    assert choose_gate_up_launch(1, 2).columns == 16


def test_latents_are_walked_in_whole_steps() -> None:
    assert choose_absorb_launch(192, 512) == RowLaunch(64, 64, 4)
    assert choose_absorb_launch(32, 64) == RowLaunch(32, 64, 4)
    assert choose_expand_launch(512).columns == 512
