from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from inference_pio.configuration import (
    ConfigManager,
    GlobalOptimizationProfile,
    ModelFamily,
    ModelOptimizationConfig,
)
from inference_pio.contract.config import OptimizationConfig
from inference_pio.errors import InvalidSetting, UnknownName
from inference_pio.integration import targets
from inference_pio.integration.targets import Changes, check_profile, family_target, named_target, profile_target
from inference_pio.manager import get_optimization_manager
from inference_pio.plan.rehearse import rehearse


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch) -> ConfigManager:
    """A config manager of this test's own."""
    manager = ConfigManager()
    monkeypatch.setattr(targets, "get_config_manager", lambda: manager)
    return manager


@pytest.fixture
def configured() -> Iterator[None]:
    """What a test configures is forgotten after it."""
    yield
    for name in get_optimization_manager().get_available_optimizations():
        get_optimization_manager().configure_optimization(name, OptimizationConfig(name=name))


def test_a_profile_makes_wishes_with_its_name_as_their_source() -> None:
    flash, fusion, compression = profile_target("balanced", ModelFamily.OTHER)
    assert (flash.name, flash.order, flash.source) == ("flash_attention", False, "profile 'balanced'")
    assert (fusion.name, fusion.order, fusion.source) == ("kernel_fusion", False, "profile 'balanced'")
    assert compression.parameters == {"format": "int8"}
    assert compression.priority == 100


def test_a_family_gives_priorities_and_defaults_under_the_profiles_parameters(configs: ConfigManager) -> None:
    members = [
        {"name": "flash_attention", "priority": 7, "parameters": {"use_triton": True}},
        {"name": "tensor_compression", "dependencies": ["flash_attention"], "parameters": {"format": "int8"}},
    ]
    configs.register_family(ModelOptimizationConfig(family="llama", optimizations=members))
    configs.register_profile(
        GlobalOptimizationProfile(
            name="mine", default_settings={"flash_attention": {"use_triton": False}, "tensor_compression": {}}
        )
    )
    flash, compression = profile_target("mine", ModelFamily.LLAMA)
    assert (flash.priority, flash.parameters) == (7, {"use_triton": False})
    assert (compression.dependencies, compression.parameters) == (("flash_attention",), {"format": "int8"})


def test_what_a_family_switches_off_is_left_out_of_a_profile_with_that_reason(configs: ConfigManager) -> None:
    off = [{"name": "tensor_compression", "enabled": False}]
    configs.register_family(ModelOptimizationConfig(family="llama", optimizations=off))
    *others, compression = profile_target("balanced", ModelFamily.LLAMA)
    assert compression.off == "switched off for the family 'llama'"
    assert {one.off for one in others} == {None}


@pytest.mark.usefixtures("configured")
def test_what_the_user_configured_lies_under_the_profile() -> None:
    manager = get_optimization_manager()
    given = OptimizationConfig(name="flash_attention", priority=3, parameters={"use_triton": True})
    manager.configure_optimization("flash_attention", given)
    flash, *_ = profile_target("balanced", ModelFamily.OTHER)
    assert (flash.priority, flash.parameters) == (3, {"use_triton": True})


@pytest.mark.usefixtures("configured")
def test_what_the_user_switched_off_stays_off_in_a_profile() -> None:
    manager = get_optimization_manager()
    manager.configure_optimization("flash_attention", OptimizationConfig(name="flash_attention", enabled=False))
    flash, *_ = profile_target("balanced", ModelFamily.OTHER)
    assert "configure_optimization" in flash.off


def test_changes_are_orders_on_top() -> None:
    changes = Changes(enable=("tensor_compression",), parameters={"flash_attention": {"use_triton": True}})
    flash, fusion, surgery, compression = profile_target("lossless", ModelFamily.OTHER, changes)
    assert (flash.order, flash.parameters) == (True, {"use_triton": True})
    assert (fusion.order, fusion.source) == (surgery.order, surgery.source) == (False, "profile 'lossless'")
    assert (compression.order, compression.source) == (True, "by name")


def test_a_changed_member_keeps_the_profiles_other_parameters_and_its_priority() -> None:
    changed = profile_target("balanced", ModelFamily.GLM, Changes(enable=("tensor_compression",)))
    assert changed[2].parameters == {"format": "int8"}
    assert changed[2].priority == 20


def test_a_disabled_member_is_gone() -> None:
    names = [one.name for one in profile_target("balanced", ModelFamily.GLM, Changes(disable=("flash_attention",)))]
    assert names == ["kernel_fusion", "tensor_compression"]


def test_disabling_every_member_is_refused() -> None:
    members = tuple(ConfigManager().get_profile("lossless").default_settings)
    with pytest.raises(InvalidSetting, match="nothing is left of profile 'lossless'"):
        profile_target("lossless", ModelFamily.OTHER, Changes(disable=members))


def test_a_name_cannot_be_switched_on_and_off_at_once() -> None:
    with pytest.raises(InvalidSetting, match="flash_attention cannot be switched on and off"):
        Changes(disable=("flash_attention",), parameters={"flash_attention": {}})


@pytest.mark.parametrize(
    "changes",
    [
        Changes(enable=("flash",)),
        Changes(disable=("flash",)),
        Changes(parameters={"flash": {}}),
        Changes(parameters={"flash_attention": {"triton": True}}),
    ],
)
def test_unknown_names_are_told(changes: Changes) -> None:
    with pytest.raises(UnknownName, match=r"flash_attention|use_triton"):
        profile_target("balanced", ModelFamily.OTHER, changes)


@functools.cache
def like_qwen3_4b() -> Any:
    """Its shapes without bytes, of layers one in twelve."""
    sizes = {"hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32, "num_key_value_heads": 8}
    config = Qwen3Config(vocab_size=151936, num_hidden_layers=3, head_dim=128, tie_word_embeddings=True, **sizes)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


@pytest.mark.parametrize("hardware", ["hopper", "ampere_ada", "small_gpu"])
@pytest.mark.parametrize("profile", ["balanced", "performance"])
def test_on_gpus_a_tied_head_is_held_in_a_byte_a_weight_with_its_embedding(profile: str, hardware: str) -> None:
    model = like_qwen3_4b()
    target = {one.name: one for one in profile_target(profile, ModelFamily.QWEN, hardware=hardware)}
    name, registry = "tensor_compression", get_optimization_manager().registry
    (step,), _ = rehearse(model, [name], target, registry, torch.device("cpu"))
    assert step.decision["tied"] == {"lm_head": "model.embed_tokens"}
    fast = (profile, hardware) == ("performance", "hopper")
    assert step.decision["formats"] == {"lm_head": "fp8" if fast else "int8"}
    assert step.weight_bytes_after <= 0.51 * sum(one.nbytes for one in model.parameters())


def test_a_family_config_makes_wishes_of_its_enabled_members() -> None:
    members = [{"name": "flash_attention", "enabled": False}, {"name": "tensor_compression", "priority": 4}]
    (wish,) = family_target(ModelOptimizationConfig(family="qwen", optimizations=members))
    assert (wish.name, wish.order, wish.priority) == ("tensor_compression", False, 4)
    assert wish.source == "defaults of the family 'qwen'"


def test_a_list_of_configs_makes_orders_of_the_enabled_ones() -> None:
    configs = [OptimizationConfig(name="flash_attention"), OptimizationConfig(name="tensor_compression", enabled=False)]
    (order,) = named_target(configs)
    assert (order.name, order.order, order.source) == ("flash_attention", True, "by config")


def test_orders_must_fit_the_profile_on_one_class_of_hardware() -> None:
    by_groups = Changes(parameters={"tensor_compression": {"group_size": 64}})
    check_profile("performance", ModelFamily.OTHER, by_groups)  # int4 on some, int8 on others
    check_profile("performance", ModelFamily.OTHER, by_groups, "hopper")
    with pytest.raises(InvalidSetting, match="group_size=64 is for formats with groups"):
        check_profile("performance", ModelFamily.OTHER, by_groups, "ampere_ada")
    with pytest.raises(InvalidSetting, match="group_size=64 is for formats with groups"):
        check_profile("balanced", ModelFamily.OTHER, by_groups)
    with pytest.raises(UnknownName, match="unknown hardware class"):
        check_profile("balanced", ModelFamily.OTHER, None, "gpu")
