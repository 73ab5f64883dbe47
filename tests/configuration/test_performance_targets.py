from __future__ import annotations

from typing import Any

import pytest

from inference_pio.configuration import PerformanceTargets
from inference_pio.errors import InvalidSetting, UnknownName


def test_nothing_is_promised_unless_it_is_said() -> None:
    targets = PerformanceTargets()
    assert (targets.latency_reduction, targets.memory_efficiency, targets.throughput_improvement) == (None, None, None)


def test_gains_are_shares_and_whole_numbers_count_as_numbers() -> None:
    assert (
        PerformanceTargets(latency_reduction=0, memory_efficiency=0.5, throughput_improvement=8).latency_reduction == 0
    )


@pytest.mark.parametrize("name", ["latency_reduction", "memory_efficiency", "throughput_improvement"])
@pytest.mark.parametrize("wrong", [-0.1, 1001, True, "0.3", float("nan"), float("inf"), [0.3]])
def test_what_is_no_gain_is_told_by_name(name: str, wrong: Any) -> None:
    with pytest.raises(InvalidSetting, match=name):
        PerformanceTargets(**{name: wrong})


@pytest.mark.parametrize("name", ["latency_reduction", "memory_efficiency"])
def test_nothing_can_save_all(name: str) -> None:
    with pytest.raises(InvalidSetting, match="less than 1"):
        PerformanceTargets(**{name: 1})


def test_an_unknown_target_is_told_with_the_nearest_known_one() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'memory_efficiency'"):
        PerformanceTargets(memory_eficiency=0.3)
