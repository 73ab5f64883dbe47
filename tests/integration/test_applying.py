from __future__ import annotations

from collections.abc import Iterator

import pytest

from inference_pio.configuration import ConfigManager, ModelFamily, ModelOptimizationConfig, get_config_manager
from inference_pio.errors import InvalidModel
from inference_pio.integration import apply_optimizations_by_config, apply_qwen_optimizations, targets
from inference_pio.integration import create_optimization_pipeline as pipeline_of
from inference_pio.integration.applying import active_profile_name, apply_family_config, apply_family_profile
from inference_pio.integration.targets import family_target, profile_target
from inference_pio.manager import get_optimization_manager
from tests import tiny


@pytest.fixture
def _balanced_again() -> Iterator[None]:
    yield
    get_config_manager().set_active_profile("balanced")


def applied(model: object) -> list[str]:
    return get_optimization_manager().get_model_optimizations(model)


@pytest.mark.usefixtures("_balanced_again")
def test_the_active_profile_is_taken_where_none_is_named() -> None:
    assert active_profile_name(None) == "balanced"
    get_config_manager().set_active_profile("lossless")
    assert active_profile_name("balanced") == "balanced"
    assert applied(apply_qwen_optimizations(tiny.build("qwen3"))) == ["flash_attention", "kernel_fusion"]
    assert pipeline_of().profile_name == "lossless"


@pytest.mark.parametrize(
    ("name", "family", "priorities"),
    [
        ("glm4_moe", "glm", {"tensor_compression": 10, "flash_attention": 5, "kernel_fusion": 15}),
        ("glm4_moe_lite", "glm", {"tensor_compression": 10, "flash_attention": 5, "kernel_fusion": 15}),
        ("qwen3", "qwen", {"tensor_compression": 20, "flash_attention": 10, "kernel_fusion": 15}),
        ("qwen3_moe", "qwen", {"tensor_compression": 5, "flash_attention": 10, "kernel_fusion": 15}),
        ("qwen3_vl", "qwen", {"tensor_compression": 30, "flash_attention": 5, "kernel_fusion": 15}),
    ],
)
def test_each_kind_of_model_has_its_own_defaults_under_a_profile(
    name: str, family: str, priorities: dict[str, int]
) -> None:
    plan = pipeline_of(family, "balanced").plan(tiny.build(name))
    assert {step.name: step.priority for step in plan.steps} == priorities


@pytest.mark.parametrize(
    ("name", "family", "uses"),
    [
        ("glm4_moe", "glm", ["tensor_compression", "flash_attention", "kernel_fusion"]),
        ("glm4_moe_lite", "glm", ["tensor_compression", "flash_attention", "kernel_fusion"]),
        ("qwen3", "qwen", ["tensor_compression", "flash_attention", "kernel_fusion"]),
        ("qwen3_moe", "qwen", ["tensor_compression", "kernel_fusion"]),
        ("qwen3_vl", "qwen", ["tensor_compression", "flash_attention", "kernel_fusion"]),
    ],
)
def test_each_kind_of_model_uses_its_own_by_default(name: str, family: str, uses: list[str]) -> None:
    model = tiny.build(name)
    apply_optimizations_by_config(model, get_config_manager().get_family_config(family))
    assert applied(model) == uses


def test_a_variants_parameters_reach_the_model_of_its_kind_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = ConfigManager()
    config = ModelOptimizationConfig(
        family="qwen", optimizations=["flash_attention"],
        variants={"qwen3_moe": {"defaults": {"flash_attention": {"use_triton": True}}}},
    )  # fmt: skip
    manager.register_family(config, replace=True)
    monkeypatch.setattr(targets, "get_config_manager", lambda: manager)
    for name, wanted in (("qwen3_moe", True), ("qwen3", False)):
        model = apply_qwen_optimizations(tiny.build(name), "lossless")
        flash, _ = get_optimization_manager().get_receipts(model)
        assert flash.parameters["use_triton"] is wanted


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "qwen3_vl", "glm4_moe", "llama"])
def test_a_profile_laid_over_a_family_config_plans_what_the_profile_plans(name: str) -> None:
    manager, model = get_config_manager(), tiny.build(name)
    for profile in manager.list_profiles():
        for family in (ModelFamily.QWEN, ModelFamily.GLM):
            config = manager.apply_profile_to_model_config(manager.get_family_config(family), profile)
            by_config = {one.name: (one.parameters, one.priority) for one in family_target(config, name)}
            by_profile = profile_target(profile, family, model_type=model.config.model_type)
            assert by_config == {one.name: (one.parameters, one.priority) for one in by_profile}


def test_a_config_and_a_profile_need_a_model() -> None:
    with pytest.raises(InvalidModel):
        apply_family_profile("gpt2", ModelFamily.GLM, "balanced")
    with pytest.raises(InvalidModel):
        apply_family_config(None, ModelOptimizationConfig(family="glm"))
