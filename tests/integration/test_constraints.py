from __future__ import annotations

import logging

import pytest
import torch

from inference_pio.configuration import GlobalOptimizationProfile, ModelFamily, get_config_manager
from inference_pio.errors import InvalidModel, PlanError
from inference_pio.integration import applying, constraints, create_optimization_pipeline, reset_model_optimizations
from inference_pio.integration.constraints import hold_constraints, total_bytes_of
from inference_pio.integration.targets import profile_target
from inference_pio.manager import get_optimization_manager
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny


def profile(name: str = "mine", **asked: object) -> GlobalOptimizationProfile:
    settings = {"tensor_compression": {}}
    return GlobalOptimizationProfile(name=name, default_settings=settings, resource_constraints=asked)


def hold(model: torch.nn.Module, **asked: object) -> None:
    hold_constraints(profile(**asked), model, profile_target("balanced", ModelFamily.OTHER, hardware="cpu"))


def test_weights_may_take_their_share_of_the_memory_as_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama")
    planned = create_optimization_pipeline(profile_name="balanced").plan(model).weight_bytes_after
    monkeypatch.setattr(constraints, "total_bytes_of", lambda device: 2 * planned)
    hold(model, max_memory_usage_ratio=0.5)
    with pytest.raises(PlanError, match=r"lets weights take 49% of the memory of cpu \(max_memory_usage_ratio\)"):
        hold(model, max_memory_usage_ratio=0.49)


def test_a_profile_that_is_refused_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama")
    before = fingerprint(model)
    monkeypatch.setattr(constraints, "total_bytes_of", lambda device: 1000)
    get_config_manager().register_profile(profile("too_small", max_memory_usage_ratio=0.5), replace=True)
    with pytest.raises(PlanError, match="Nothing was touched"):
        create_optimization_pipeline(profile_name="too_small")(model)
    assert before.differences(fingerprint(model)) == []
    monkeypatch.undo()
    create_optimization_pipeline(profile_name="too_small")(model)
    assert get_optimization_manager().get_model_optimizations(model) == ["tensor_compression"]
    reset_model_optimizations(model)


def test_weights_that_a_plan_could_not_foresee_are_held_after_the_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama")
    before = fingerprint(model)
    get_config_manager().register_profile(profile("unforeseen", max_memory_usage_ratio=0.5), replace=True)
    monkeypatch.setattr(applying, "hold_constraints", lambda *asked: None)
    monkeypatch.setattr(constraints, "total_bytes_of", lambda device: 1000)
    with pytest.raises(PlanError, match=r"50% of the memory of cpu \(max_memory_usage_ratio\), and they take"):
        create_optimization_pipeline(profile_name="unforeseen")(model)
    assert before.differences(fingerprint(model)) == []


def test_a_model_on_the_cpu_is_asked_for_no_compute_capability() -> None:
    hold(tiny.build("llama"), min_compute_capability=99.9)


@pytest.mark.parametrize(("has", "wanted", "enough"), [((8, 9), 8.9, True), ((8, 6), 8.9, False), ((10, 0), 9.0, True)])
def test_compute_capabilities_are_compared_as_versions_are(
    has: tuple[int, int], wanted: float, enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: has)
    monkeypatch.setattr(constraints, "device_of", lambda model: torch.device("cuda", 0))
    if enough:
        hold(tiny.build("llama"), min_compute_capability=wanted)
    else:
        with pytest.raises(PlanError, match=r"asks for compute capability 8\.9 .*, and cuda:0 has 8\.6"):
            hold(tiny.build("llama"), min_compute_capability=wanted)


@pytest.mark.gpu
def test_a_gpu_must_have_the_compute_capability_that_is_asked_for() -> None:
    model = tiny.build("llama").cuda()
    hold(model, min_compute_capability=7.0)
    with pytest.raises(PlanError, match=r"asks for compute capability 99\.9 \(min_compute_capability\)"):
        hold(model, min_compute_capability=99.9)


@pytest.mark.parametrize("has_gpu", [False, True])
def test_a_preference_for_a_gpu_is_told_where_there_is_one(
    has_gpu: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    with caplog.at_level(logging.WARNING, "inference_pio"):
        hold(tiny.build("llama"), prefer_gpu_over_cpu=True)
    assert ("prefers a GPU" in caplog.text) is has_gpu


def test_the_memory_of_the_cpu_is_the_machines() -> None:
    assert total_bytes_of(torch.device("cpu")) > 1e8


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(InvalidModel):
        hold("gpt2")
