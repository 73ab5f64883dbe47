from __future__ import annotations

import pytest

from inference_pio.configuration import GlobalOptimizationProfile, ModelFamily, get_config_manager
from inference_pio.errors import UnknownName
from inference_pio.integration import OptimizationPipeline, create_optimization_pipeline
from inference_pio.manager import get_optimization_manager
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny


def test_a_pipeline_serves_any_number_of_models() -> None:
    pipeline = create_optimization_pipeline(model_family=ModelFamily.GLM, profile_name="balanced")
    models = [tiny.build("glm4_moe", seed=seed) for seed in (0, 1)]
    for model in models:
        assert pipeline(model) is model
        assert get_optimization_manager().get_model_optimizations(model) == [
            "tensor_compression",
            "flash_attention",
            "kernel_fusion",
        ]


def test_without_a_family_each_models_own_is_taken() -> None:
    pipeline = create_optimization_pipeline(profile_name="lossless")
    assert pipeline.plan(tiny.build("qwen3")).steps[0].priority == 10
    assert pipeline.plan(tiny.build("llama")).steps[0].priority == 100


def test_a_pipeline_says_what_it_does() -> None:
    pipeline = create_optimization_pipeline("qwen", "lossless")
    told = (
        "OptimizationPipeline(profile_name='lossless', model_family=ModelFamily.QWEN): "
        "flash_attention, kernel_fusion, model_surgery"
    )
    assert repr(pipeline) == told
    assert pipeline == OptimizationPipeline("lossless", ModelFamily.QWEN)


def test_a_pipeline_is_made_for_each_models_own_hardware_or_for_one_that_is_named() -> None:
    model = tiny.build("qwen3")
    own = create_optimization_pipeline(profile_name="performance").plan(model)
    named = create_optimization_pipeline(profile_name="performance", hardware="ampere_ada")
    assert (own.hardware, named.plan(model).hardware) == (
        "cpu (the device is cpu, no NVIDIA GPU)",
        "ampere_ada (as asked for)",
    )
    assert [plan.steps[0].parameters["format"] for plan in (own, named.plan(model))] == ["int4", "int8"]
    named(model)
    (compression, *_) = get_optimization_manager().get_receipts(model)
    assert compression.parameters["format"] == "int8"
    assert "hardware='ampere_ada'" in repr(named)
    guarded = create_optimization_pipeline(max_kl=0.1)
    assert "max_kl=0.1" in repr(guarded)
    assert "quality guard: max_kl=0.1 is measured after the apply" in str(guarded.plan(model))
    assert "quality guard" not in str(own)


def test_what_a_profile_says_of_any_class_is_checked_when_the_pipeline_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = GlobalOptimizationProfile(
        name="wrong", default_settings={"flash_attention": {}},
        hardware={"hopper": {"default_settings": {"flash_atention": {}}}},
    )  # fmt: skip
    monkeypatch.setitem(get_config_manager()._profiles, "wrong", wrong)
    with pytest.raises(UnknownName, match="Did you mean 'flash_attention'"):
        create_optimization_pipeline(profile_name="wrong")


def test_a_plan_touches_nothing() -> None:
    model = tiny.build("qwen3")
    before = fingerprint(model)
    plan = create_optimization_pipeline("qwen").plan(model)
    assert [step.name for step in plan.steps] == ["tensor_compression", "flash_attention", "kernel_fusion"]
    assert plan.profile == "balanced"
    assert before.differences(fingerprint(model)) == []


def test_wrong_names_are_told_when_the_pipeline_is_made() -> None:
    with pytest.raises(UnknownName, match="unknown profile"):
        create_optimization_pipeline(profile_name="fast")
    with pytest.raises(UnknownName, match="unknown family"):
        create_optimization_pipeline(model_family="glmm")
    with pytest.raises(UnknownName, match="unknown family"):
        OptimizationPipeline("balanced", "glmm")
    with pytest.raises(UnknownName, match="unknown hardware class"):
        create_optimization_pipeline(hardware="h100")
