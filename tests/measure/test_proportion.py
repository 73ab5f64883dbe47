from __future__ import annotations

import math

import pytest

from inference_pio.measure.proportion import Proportion


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),  # by statsmodels' proportion_confint(method="wilson")
    [(8, 8, 0.67559, 1.0), (0, 10, 0.0, 0.27753), (5, 10, 0.23659, 0.76341), (190, 200, 0.91042, 0.97262)],
)
def test_intervals_are_wilsons(hits: int, count: int, low: float, high: float) -> None:
    assert Proportion(hits, count).interval == pytest.approx((low, high), abs=1e-4)


def test_nothing_asked_says_nothing() -> None:
    assert math.isnan(Proportion(0, 0).share)
    assert Proportion(0, 0).interval == (0.0, 1.0)


def test_proportions_add_up() -> None:
    assert Proportion(1, 3) + Proportion(2, 2) == Proportion(3, 5)
