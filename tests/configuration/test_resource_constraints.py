from __future__ import annotations

from typing import Any

import pytest

from inference_pio.configuration import ResourceConstraints
from inference_pio.errors import InvalidSetting, UnknownName


def test_nothing_is_asked_unless_it_is_said() -> None:
    asked = ResourceConstraints()
    assert (asked.max_memory_usage_ratio, asked.min_compute_capability, asked.prefer_gpu_over_cpu) == (
        None,
        None,
        False,
    )


@pytest.mark.parametrize("right", [{"max_memory_usage_ratio": 1}, {"min_compute_capability": 8.9}])
def test_the_ends_of_the_ranges_are_in(right: dict[str, Any]) -> None:
    assert ResourceConstraints(**right).model_dump(exclude_unset=True) == right


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("max_memory_usage_ratio", 0),
        ("max_memory_usage_ratio", 1.1),
        ("max_memory_usage_ratio", True),
        ("min_compute_capability", 0.9),
        ("min_compute_capability", 8.95),
        ("min_compute_capability", "8.0"),
        ("min_compute_capability", float("inf")),
        ("prefer_gpu_over_cpu", 1),
        ("prefer_gpu_over_cpu", "true"),
    ],
)
def test_what_is_out_of_range_or_of_another_kind_is_told_by_name(name: str, wrong: Any) -> None:
    with pytest.raises(InvalidSetting, match=name):
        ResourceConstraints(**{name: wrong})


def test_an_unknown_constraint_is_told_with_the_nearest_known_one() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'max_memory_usage_ratio'"):
        ResourceConstraints(max_memory_ratio=0.5)
