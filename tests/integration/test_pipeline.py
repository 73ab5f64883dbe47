from __future__ import annotations

import pytest

from inference_pio.configuration import ModelFamily
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
