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


def test_a_quality_guard_tells_what_it_measured_and_what_each_step_costs() -> None:
    cost = {"name": "x", "kl_bought": 0.1, "perplexity_ratio_bought": 0.2, "weight_bytes_saved": 2_000_000}
    verdict = {
        "bounds": {"max_kl": 0.05}, "source": "a text", "tokens": 2048, "kl_nats_per_token": 0.01,
        "perplexity_ratio": 1.01, "kl_before": 0.11, "perplexity_ratio_before": 1.2, "costs": [cost],
        "taken_back": {"x": "too much"},
    }  # fmt: skip
    assert standing_of({"quality_guard": verdict}) == [
        ("quality guard", "KL 0.01 nats/token, perplexity ratio 1.0100 on 2048 tokens of a text; allowed: max_kl 0.05; "
         "with all steps KL 0.11 nats/token, perplexity ratio 1.2000"),
        ("cost: x", "KL 0.1 nats/token, perplexity ratio +0.2000, saves 2.0 MB, taken back"),
    ]  # fmt: skip
    assert standing_of({"quality_guard": None}) == []
    beyond = verdict | {"kl_before": "inf", "costs": [cost | {"kl_bought": "inf"}]}
    assert "with all steps KL inf nats/token" in str(standing_of({"quality_guard": beyond}))
