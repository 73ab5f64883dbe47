from __future__ import annotations

from inference_pio.measure.comparison import compare_measurements
from inference_pio.measure.report_steps import AfterStep, step_lines
from tests.measure.test_comparison import QUALITY, timed


def test_each_step_is_told_beside_the_one_before() -> None:
    plain, faster, slower = timed((10.0, 10.0)), timed((20.0, 20.0)), timed((15.0, 15.0))
    steps = [
        AfterStep("plain", plain),
        AfterStep("one", faster, compare_measurements(plain, faster, QUALITY)),
        AfterStep("two", slower, compare_measurements(plain, slower)),
    ]
    first, second = step_lines(steps)
    assert first.startswith("step one: decode 20.0 tokens/s (100% faster)")
    assert first.endswith("KL from the original 0.01 nats/token")
    assert second.startswith("step two: decode 15.0 tokens/s (25% slower)")
    assert "KL" not in second
    assert step_lines([]) == []


def test_the_json_of_the_plain_model_has_no_comparison() -> None:
    assert AfterStep("plain", timed((10.0, 10.0))).to_json()["comparison"] is None
