from __future__ import annotations

import inference_pio
from inference_pio.measure.html.standing import standing_of
from tests import tiny


def test_a_real_status_is_told_with_its_optimizations_and_bytes() -> None:
    model = inference_pio.optimize(tiny.build("llama"), "balanced")
    found = dict(standing_of(inference_pio.get_model_optimization_status(model)))
    assert found["applied optimizations"] == "tensor_compression, flash_attention, kernel_fusion"
    assert found["profile"] == "balanced"
    assert found["held bytes"].endswith("B")
    inference_pio.restore(model)


def test_applied_optimizations_are_named_in_whatever_form_they_come() -> None:
    for applied in (["a", "b"], [{"name": "a"}, {"name": "b"}], {"a": {}, "b": {}}):
        assert standing_of({"applied_optimizations": applied}) == [("applied optimizations", "a, b")]


def test_counters_are_lines_and_no_status_is_none() -> None:
    assert standing_of({"counters": {"calls": 3}}) == [("counted: calls", "3")]
    assert standing_of(None) == []


def test_what_is_left_out_is_told_with_its_reason() -> None:
    assert standing_of({"skipped": [{"name": "x", "reason": "no gpu"}]}) == [("left out: x", "no gpu")]
