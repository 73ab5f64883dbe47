from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from inference_pio.configuration import GlobalOptimizationProfile, PerformanceTargets, targets_missed
from inference_pio.configuration.missed_targets import CHECKED
from inference_pio.measure.comparison import Comparison

REACHED = Comparison(
    kl_nats_per_token=None, top1_agreement=None, decode_speedup=1.5, weight_bytes_ratio=0.5, perplexity_ratio=None,
    prefill_ratio=1.0, time_to_first_token_ratio=0.7, resident_bytes_ratio=0.6, peak_bytes_ratio=0.9,
)  # fmt: skip


def profile(**targets: float) -> GlobalOptimizationProfile:
    return GlobalOptimizationProfile(name="mine", default_settings={"one": {}}, performance_targets=targets)


def test_every_target_is_checked_against_a_key_that_a_comparison_has() -> None:
    assert set(CHECKED) == set(PerformanceTargets.model_fields)
    assert {key for key, _ in CHECKED.values()} <= {one.name for one in dataclasses.fields(Comparison)}


@pytest.mark.parametrize("comparison", [REACHED, REACHED.to_json()])
def test_what_is_reached_to_the_point_is_not_missed(comparison: Any) -> None:
    asked = profile(latency_reduction=0.3, memory_efficiency=0.4, throughput_improvement=0.5)
    assert targets_missed(asked, comparison) == []
    assert targets_missed(profile(), comparison) == []


@pytest.mark.parametrize(
    ("name", "wanted", "told"),
    [
        ("latency_reduction", 0.5, "latency_reduction: 50.0% was wanted, and 30.0% was reached (time_to_first_token"),
        ("memory_efficiency", 0.5, "memory_efficiency: 50.0% was wanted, and 40.0% was reached (resident_bytes_ratio"),
        ("throughput_improvement", 1, "100.0% was wanted, and 50.0% was reached (decode_speedup 1.500)"),
    ],
)
def test_what_is_missed_says_by_how_much(name: str, wanted: float, told: str) -> None:
    (missed,) = targets_missed(profile(**{name: wanted}), REACHED)
    assert told in str(missed)
    assert missed.to_json()["wanted"] == wanted


@pytest.mark.parametrize("comparison", [{}, {"decode_speedup": None}, {"decode_speedup": "nan"}])
def test_what_was_not_measured_is_missed(comparison: dict[str, Any]) -> None:
    (missed,) = targets_missed(profile(throughput_improvement=0), comparison)
    assert missed.reached is None
    assert "decode_speedup was not measured" in str(missed)


def test_infinities_are_words_in_json_and_still_numbers_here() -> None:
    assert targets_missed(profile(throughput_improvement=2), {"decode_speedup": "inf"}) == []
    (missed,) = targets_missed(profile(memory_efficiency=0), {"resident_bytes_ratio": "inf"})
    assert missed.reached == float("-inf")
