from __future__ import annotations

import pytest

import inference_pio
from inference_pio.errors import InvalidSetting, MeasureError
from inference_pio.integration import create_optimization_pipeline
from inference_pio.integration.around import measure_around
from inference_pio.integration.each_step import IN_STEPS, PLAIN
from inference_pio.integration.measured import NO_QUALITY
from inference_pio.manager import get_optimization_manager
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.model_folder import QUICK, byte_tokenizer


def test_a_report_holds_the_plan_the_receipts_and_the_numbers_before_and_after() -> None:
    model = tiny.build("llama")
    report = measure_around(model, create_optimization_pipeline("llama"), byte_tokenizer(), QUICK)
    data = report.to_json()
    assert [step["name"] for step in data["plan"]["steps"]] == [
        "tensor_compression",
        "flash_attention",
        "kernel_fusion",
    ]
    assert [receipt["name"] for receipt in data["receipts"]] == [
        "tensor_compression",
        "flash_attention",
        "kernel_fusion",
    ]
    assert data["profile"] == "balanced"
    assert data["optimized"]["weight_bytes"] < data["baseline"]["weight_bytes"]
    assert 0 <= data["comparison"]["kl_nats_per_token"] < 0.1
    assert data["comparison"]["perplexity_ratio"] == pytest.approx(1, abs=0.05)
    assert data["machine"]["device"] == "cpu"


def test_without_a_tokenizer_quality_is_left_out_and_the_report_says_so() -> None:
    report = measure_around(tiny.build("llama"), create_optimization_pipeline("llama"), None, QUICK)
    assert report.baseline.perplexity is None
    assert report.comparison.kl_nats_per_token is None
    assert NO_QUALITY in report.notes


def test_held_bytes_count_before_and_after() -> None:
    model = tiny.build("llama")
    get_optimization_manager().apply_optimizations(model, ["tensor_compression"], keep_originals="host")
    held = get_optimization_manager().get_optimization_status(model)["held_bytes"]
    report = measure_around(model, create_optimization_pipeline("llama"), byte_tokenizer(), QUICK)
    assert held > 0
    assert report.baseline.resident_bytes == report.baseline.weight_bytes + held


def test_the_short_face_answers_with_model_and_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_pio.integration.around.ProbeSettings", lambda: QUICK)
    model = tiny.build("qwen3")
    same, report = inference_pio.optimize(model, "lossless", measure=True, tokenizer=byte_tokenizer())
    assert same is model
    assert report.comparison.top1_agreement > 0.9


def test_when_the_second_measurement_fails_the_short_face_leaves_the_model_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise MeasureError("the clock stood still")

    monkeypatch.setattr("inference_pio.integration.around.ProbeSettings", lambda: QUICK)
    monkeypatch.setattr("inference_pio.integration.measured.probe", fails)
    model = tiny.build("qwen3")
    before = fingerprint(model)
    with pytest.raises(MeasureError, match="stood still"):
        inference_pio.optimize(model, measure=True, tokenizer=byte_tokenizer())
    assert before.differences(fingerprint(model)) == []


def test_with_each_step_the_report_tells_what_each_one_brought() -> None:
    model = tiny.build("llama")
    before = fingerprint(model)
    pipeline = create_optimization_pipeline("llama", max_kl=9.0)
    report = measure_around(model, pipeline, byte_tokenizer(), QUICK, each_step=True)
    assert [step.name for step in report.steps] == [PLAIN, "tensor_compression", "flash_attention", "kernel_fusion"]
    assert report.steps[1].measured.weight_bytes < report.steps[0].measured.weight_bytes
    assert report.steps[1].comparison.kl_nats_per_token > 0
    assert report.status["quality_guard"]["bounds"] == {"max_kl": 9.0}, "the guard's word stands after the steps"
    assert IN_STEPS in report.notes
    inference_pio.restore(model)
    assert before.differences(fingerprint(model)) == []


def test_steps_are_measured_only_where_something_is() -> None:
    with pytest.raises(InvalidSetting, match="measure=True"):
        inference_pio.optimize(tiny.build("llama"), each_step=True)
