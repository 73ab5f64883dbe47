from __future__ import annotations

import dataclasses
import json

import pytest

from inference_pio.measure.measurement import Measurement, plain_json
from inference_pio.measure.speed import Speed
from inference_pio.measure.spread import Spread

KEYS = [
    "decode_tokens_per_s",
    "prefill_tokens_per_s",
    "time_to_first_token_s",
    "weight_bytes",
    "resident_bytes",
    "peak_bytes",
    "perplexity",
]


def speed(decode: tuple[float, ...] = (10.0, 30.0, 20.0), run: str | None = None) -> Speed:
    prefill = Spread(tuple(100 * rate for rate in decode))
    first = Spread(tuple(1 / rate for rate in decode))
    return Speed(Spread(decode), prefill, first, 0.5, 512, 32, 64, run)


def measurement(**changes: object) -> Measurement:
    values = (20.0, 2000.0, 0.05, 1000, 1200, 5000, 9.5)
    return Measurement(**{**dict(zip(KEYS, values, strict=True)), **changes})


def test_its_fields_are_exactly_the_documented_seven_and_details():
    assert [field.name for field in dataclasses.fields(Measurement)] == [*KEYS, "details"]
    assert list(measurement().to_json()) == [*KEYS, "details"]


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        measurement().perplexity = 1.0


def test_speeds_of_another_run_replace_the_medians_and_their_spread():
    before = measurement(details={"held_bytes": 200})
    after = before.with_speed(speed((4.0, 8.0, 2.0)))
    assert (after.decode_tokens_per_s, after.prefill_tokens_per_s, after.time_to_first_token_s) == (4.0, 400.0, 0.25)
    assert after.details["speed"]["decode_tokens_per_s"]["samples"] == [4.0, 8.0, 2.0]
    assert after.details["held_bytes"] == 200
    assert dataclasses.replace(after, **{key: getattr(before, key) for key in KEYS}, details=before.details) == before


def test_a_perplexity_that_was_not_measured_is_null():
    assert json.loads(json.dumps(measurement(perplexity=None).to_json()))["perplexity"] is None


def test_infinity_and_nan_become_words_that_strict_json_can_hold():
    text = json.dumps(plain_json({"a": float("inf"), "b": [float("nan"), (1, 2.5)], 3: None}), allow_nan=False)
    assert json.loads(text) == {"a": "inf", "b": ["nan", [1, 2.5]], "3": None}
