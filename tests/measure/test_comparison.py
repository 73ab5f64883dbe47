from __future__ import annotations

import dataclasses
import json

import pytest

from inference_pio.measure.comparison import Comparison, compare_measurements
from inference_pio.measure.measurement import Measurement
from inference_pio.measure.quality import Quality
from tests.measure.test_measurement import measurement, speed

DOCUMENTED = {"kl_nats_per_token", "top1_agreement", "decode_speedup", "weight_bytes_ratio", "perplexity_ratio"}
QUALITY = Quality(
    9.6, (9.0, 10.0), 0.01, (0.005, 0.02), 0.97, (0.96, 0.98), 8687, 9.5, (9.1, 9.9), 1.0105, (1.01, 1.011)
)


def timed(decode: tuple[float, ...], run: str | None = None) -> Measurement:
    return measurement().with_speed(speed(decode, run))


def test_its_keys_hold_the_documented_five():
    found = compare_measurements(measurement(), measurement(), QUALITY).to_json()
    assert set(found) >= DOCUMENTED
    assert list(found) == [field.name for field in dataclasses.fields(Comparison)]


def test_every_ratio_is_optimized_over_baseline():
    optimized = measurement(
        decode_tokens_per_s=30.0,
        prefill_tokens_per_s=1400.0,
        time_to_first_token_s=0.1,
        weight_bytes=500,
        resident_bytes=900,
        peak_bytes=4000,
        perplexity=9.6,
    )
    found = compare_measurements(measurement(), optimized, QUALITY)
    assert (found.kl_nats_per_token, found.top1_agreement) == (0.01, 0.97)
    assert found.decode_speedup == 1.5
    assert found.prefill_ratio == 0.7
    assert found.time_to_first_token_ratio == 2.0
    assert (found.weight_bytes_ratio, found.resident_bytes_ratio, found.peak_bytes_ratio) == (0.5, 0.75, 0.8)
    assert found.perplexity_ratio == pytest.approx(9.6 / 9.5)


def test_models_timed_in_turn_are_compared_round_by_round():
    """The machine slowed down threefold on the way; each pair of rounds still says 2."""
    found = compare_measurements(timed((30.0, 20.0, 10.0), "one"), timed((60.0, 40.0, 20.0), "one"))
    assert found.decode_speedup == 2.0
    assert found.intervals["decode_speedup"] == (2.0, 2.0)


@pytest.mark.parametrize("runs", [("one", "another"), (None, None), ("one", None)])
def test_models_timed_apart_are_compared_at_their_extremes(runs):
    found = compare_measurements(timed((30.0, 20.0, 10.0), runs[0]), timed((60.0, 40.0, 20.0), runs[1]))
    assert found.intervals["decode_speedup"] == (20.0 / 30.0, 60.0 / 10.0)
    assert found.intervals["time_to_first_token_ratio"] == pytest.approx((10.0 / 60.0, 30.0 / 20.0))


def test_an_interval_always_contains_the_ratio_of_the_medians():
    found = compare_measurements(timed((10.0, 20.0, 30.0), "one"), timed((30.0, 10.0, 20.0), "one"))
    low, high = found.intervals["decode_speedup"]
    assert low <= found.decode_speedup <= high


def test_the_paired_perplexity_interval_is_given_only_beside_its_own_baseline():
    assert "perplexity_ratio" in compare_measurements(measurement(), measurement(), QUALITY).intervals
    other = compare_measurements(measurement(perplexity=9.4), measurement(), QUALITY)
    assert "perplexity_ratio" not in other.intervals
    assert other.intervals["kl_nats_per_token"] == (0.005, 0.02)


def test_quality_that_was_not_measured_is_null_not_perfect():
    found = compare_measurements(measurement(perplexity=None), measurement()).to_json()
    assert (found["kl_nats_per_token"], found["top1_agreement"], found["perplexity_ratio"]) == (None, None, None)
    assert found["intervals"] == {}


def test_a_model_whose_weights_are_all_elsewhere_is_still_compared():
    nothing = measurement(weight_bytes=0, resident_bytes=0)
    assert compare_measurements(nothing, nothing).weight_bytes_ratio == 1.0
    assert compare_measurements(measurement(), nothing).weight_bytes_ratio == 0.0
    assert json.loads(json.dumps(compare_measurements(nothing, measurement()).to_json()))["weight_bytes_ratio"] == "inf"
