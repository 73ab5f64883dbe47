"""The planner keeps to the budget, keeps the most, spreads it evenly, and refuses with the numbers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_pio.streaming.placement import Placement, Speeds, place

SIZES = st.lists(st.integers(1, 1000), min_size=2, max_size=40)


@given(SIZES, st.integers(0, 2000), st.integers(1, 60_000), st.integers(0, 20_000))
def test_what_is_planned_keeps_to_the_budgets_and_leaves_no_layer_out(
    sizes: list[int], fixed: int, budget: int, host: int
) -> None:
    found = place(sizes, fixed, budget, host)
    if isinstance(found, str):
        assert fixed + max(sizes) > budget
        return
    assert sorted(found.resident + found.host + found.disk) == list(range(len(sizes)))
    slots = found.slots * max((sizes[number] for number in found.streamed), default=0)
    assert found.device_bytes == fixed + sum(sizes[number] for number in found.resident) + slots <= budget
    assert found.host_bytes == sum(sizes[number] for number in found.host) <= host
    assert found.disk_bytes == sum(sizes[number] for number in found.disk)


@given(st.integers(2, 60), st.integers(1, 60), st.integers(0, 100))
def test_of_like_layers_the_most_that_fit_stay(layers: int, size: int, fixed: int) -> None:
    budget = fixed + (layers - 1) * size
    found = place([size] * layers, fixed, budget)
    assert isinstance(found, Placement)
    slots = 2 if layers > 2 else 1
    assert len(found.resident) == layers - 1 - slots if layers > 2 else not found.resident
    assert found.slots == slots


def test_where_all_fits_nothing_streams() -> None:
    found = place([10, 10, 10], 5, 35)
    assert isinstance(found, Placement)
    assert (found.resident, found.streamed, found.slots) == ((0, 1, 2), (), 0)


def test_one_slot_is_taken_where_two_are_too_many() -> None:
    found = place([10] * 8, 5, 19)
    assert isinstance(found, Placement)
    assert (found.slots, found.resident) == (1, ())


def test_a_budget_too_small_is_told_in_numbers() -> None:
    assert place([10**6, 3 * 10**6], 2 * 10**6, 4 * 10**6) == (
        "the budget is 4.0 MB, and 2.0 MB always stay (embedding, head and what is not in layers), so that with room "
        "for one layer (3.0 MB) the least is 5.0 MB"
    )


def test_the_slowest_of_disk_link_and_arithmetic_decides() -> None:
    found = place([10] * 10, 0, 20, 40)
    assert isinstance(found, Placement)
    assert (found.host_bytes, found.disk_bytes) == (40, 60)
    assert found.tokens_per_s(Speeds()) is None
    assert found.tokens_per_s(Speeds(disk=60.0)) == pytest.approx(1.0)
    assert found.tokens_per_s(Speeds(disk=600.0, link=100.0)) == pytest.approx(1.0)
    assert found.tokens_per_s(Speeds(disk=600.0, link=1000.0, compute_s=0.25)) == pytest.approx(4.0)
    json.dumps(found.to_json())
