from __future__ import annotations

import pytest
import torch

import inference_pio
from inference_pio.errors import InvalidSetting, MeasureError, NothingApplied, UnknownName
from inference_pio.manager import get_optimization_manager
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny


def applied(model: torch.nn.Module) -> list[str]:
    return get_optimization_manager().get_model_optimizations(model)


def test_optimize_and_restore_answer_with_the_very_model() -> None:
    model = tiny.build("qwen3")
    before = fingerprint(model)
    assert inference_pio.optimize(model) is model
    assert applied(model) == ["tensor_compression", "flash_attention", "kernel_fusion"]
    assert inference_pio.restore(model) is model
    assert before.differences(fingerprint(model)) == []


def test_with_optimized_the_model_is_as_before_at_the_end() -> None:
    model = tiny.build("qwen3")
    before = fingerprint(model)
    with inference_pio.optimized(model, "lossless") as inside:
        assert inside is model
        assert applied(model) == ["flash_attention", "kernel_fusion"]
    assert before.differences(fingerprint(model)) == []


def test_with_optimized_an_error_passes_and_the_model_is_as_before() -> None:
    model = tiny.build("qwen3")
    before = fingerprint(model)
    with pytest.raises(ZeroDivisionError), inference_pio.optimized(model):
        1 / 0
    assert before.differences(fingerprint(model)) == []


def test_with_optimized_on_an_optimized_model_what_it_had_comes_back() -> None:
    model = inference_pio.optimize(tiny.build("qwen3"), "lossless")
    with inference_pio.optimized(model, "balanced"):
        assert applied(model) == ["tensor_compression", "flash_attention", "kernel_fusion"]
    assert applied(model) == ["flash_attention", "kernel_fusion"]


def test_a_plan_by_profile_or_by_names_touches_nothing() -> None:
    model = tiny.build("llama")
    before = fingerprint(model)
    assert [step.name for step in inference_pio.plan(model, "lossless").steps] == ["flash_attention", "kernel_fusion"]
    assert [step.name for step in inference_pio.plan(model, names=["tensor_compression"]).steps] == [
        "tensor_compression"
    ]
    assert before.differences(fingerprint(model)) == []


def test_names_in_a_plan_come_on_top_of_what_stands() -> None:
    model = inference_pio.optimize(tiny.build("llama"), "lossless")
    plan = inference_pio.plan(model, names=["tensor_compression"])
    actions = {step.name: step.action for step in plan.steps}
    assert {actions["flash_attention"], actions["kernel_fusion"]} <= {"keep", "replay"}
    assert [step.name for step in plan.steps] == ["tensor_compression", "flash_attention", "kernel_fusion"]


def test_wrong_names_are_told() -> None:
    model = tiny.build("llama")
    with pytest.raises(UnknownName, match="unknown profile"):
        inference_pio.optimize(model, "fast")
    with pytest.raises(UnknownName, match="unknown family"):
        inference_pio.optimize(model, family="llamma")
    with pytest.raises(UnknownName, match="unknown optimization"):
        inference_pio.plan(model, names=["flash"])
    with pytest.raises(InvalidSetting, match="must be a list"):
        inference_pio.plan(model, names="flash_attention")
    with pytest.raises(NothingApplied), inference_pio.optimized(tiny.build("plain"), "lossless"):
        pass


def test_measuring_a_model_that_cannot_generate_is_refused_before_the_first_edit() -> None:
    model = tiny.build("plain")
    before = fingerprint(model)
    with pytest.raises(MeasureError):
        inference_pio.optimize(model, measure=True)
    assert before.differences(fingerprint(model)) == []
