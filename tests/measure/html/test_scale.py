from __future__ import annotations

import math

import pytest

from inference_pio.measure.html.scale import Factors, Linear, from_zero, span


def test_values_lie_in_proportion_and_never_outside() -> None:
    scale = Linear(10.0, 20.0)
    assert [scale.at(value) for value in (10.0, 12.5, 20.0, 5.0, 25.0)] == [0.0, 25.0, 100.0, 0.0, 100.0]
    assert scale.at(math.nan) == 0.0
    assert scale.at(math.inf) == 100.0


@pytest.mark.parametrize(
    ("scale", "texts"),
    [
        (Linear(0.0, 100.0), ["0", "50", "100"]),
        (Linear(12.0, 15.6), ["12", "13", "14", "15"]),
        (Linear(0.0, 0.0068), ["0.000", "0.002", "0.004", "0.006"]),
        (Linear(-1.0, 1.0), ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        (Linear(0.0, 9e9), ["0", "5000000000"]),
    ],
)
def test_ticks_are_round_and_few(scale: Linear, texts: list[str]) -> None:
    assert [tick.text for tick in scale.ticks()] == texts


def test_half_and_double_are_the_same_way_off_one() -> None:
    scale = Factors.around([3.0])
    assert scale.at(1.0) == 50.0
    assert scale.at(2.0) - 50.0 == pytest.approx(50.0 - scale.at(0.5))
    assert [tick.text for tick in scale.ticks()] == ["0.5×", "1×", "2×"]


def test_a_ratio_axis_reaches_two_at_least_and_a_hundred_at_most() -> None:
    assert Factors.around([1.001]).reach == pytest.approx(2.2)
    assert Factors.around([]).reach == pytest.approx(2.2)
    assert Factors.around([0.1]).reach == pytest.approx(11.0)
    assert Factors.around([1e9]).reach == 100.0


@pytest.mark.parametrize(("ratio", "place"), [(0.0, 0.0), (-1.0, 0.0), (math.inf, 100.0), (1e-9, 0.0)])
def test_ratios_off_the_axis_lie_at_its_ends(ratio: float, place: float) -> None:
    assert Factors.around([1.5, ratio]).at(ratio) == place


def test_an_axis_over_equal_or_no_values_still_has_a_length() -> None:
    for scale in (span([5.0, 5.0]), span([]), span([0.0]), span([math.inf]), from_zero([]), from_zero([0.0])):
        assert scale.high > scale.low
        assert scale.ticks()
