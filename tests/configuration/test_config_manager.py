from __future__ import annotations

from pathlib import Path

import pytest

from inference_pio.configuration import (
    ConfigManager,
    GlobalOptimizationProfile,
    ModelFamily,
    ModelOptimizationConfig,
    get_config_manager,
)
from inference_pio.configuration.reading import DATA
from inference_pio.errors import InvalidSetting, UnknownName
from inference_pio.manager import get_optimization_manager

PROFILES = ["balanced", "experimental", "lossless", "memory_efficient", "performance"]


def test_the_five_profiles_are_there_each_in_the_file_of_its_name() -> None:
    assert ConfigManager().list_profiles() == PROFILES
    assert sorted(path.stem for path in (DATA / "profiles").glob("*.yaml")) == PROFILES


def test_lossless_is_exact_attention_and_balanced_adds_int8_weights() -> None:
    manager = ConfigManager()
    assert manager.get_profile("lossless").default_settings == {"flash_attention": {}}
    assert manager.get_profile("balanced").default_settings == {
        "flash_attention": {},
        "tensor_compression": {"format": "int8"},
    }


@pytest.mark.parametrize("name", PROFILES)
def test_every_shipped_profile_names_only_what_is_registered_with_parameters_that_are_known(name: str) -> None:
    registry = get_optimization_manager().registry
    for member, parameters in ConfigManager().get_profile(name).default_settings.items():
        registry.create(member, parameters)


@pytest.mark.parametrize("family", ["glm", "qwen"])
def test_every_shipped_family_config_holds_only_what_is_registered(family: str) -> None:
    registry = get_optimization_manager().registry
    config = ConfigManager().get_family_config(family)
    assert [member.name for member in config.enabled] == ["flash_attention", "tensor_compression"]
    for member in config.optimizations:
        assert member.optimization_type is registry.get(member.name).optimization_type
        registry.create(member.name, member.parameters)


def test_a_family_without_defaults_has_an_empty_config() -> None:
    assert ConfigManager().get_family_config("llama") == ModelOptimizationConfig(family="llama")
    assert ConfigManager().list_families() == ["glm", "llama", "mistral", "other", "qwen"]


def test_unknown_names_are_told_with_the_nearest_known_ones() -> None:
    with pytest.raises(UnknownName, match=r"unknown profile 'balance'\. Did you mean 'balanced'\?"):
        ConfigManager().get_profile("balance")
    with pytest.raises(UnknownName, match="unknown profile 3"):
        ConfigManager().get_profile(3)
    with pytest.raises(UnknownName, match=r"unknown family 'qwenn'\. Did you mean 'qwen'\?"):
        ConfigManager().get_family_config("qwenn")


def test_own_profiles_and_family_configs_are_registered_once() -> None:
    manager = ConfigManager()
    profile = GlobalOptimizationProfile(name="mine", default_settings={"flash_attention": {}})
    config = ModelOptimizationConfig(family=ModelFamily.LLAMA, optimizations=[{"name": "flash_attention"}])
    manager.register_profile(profile)
    manager.register_family(config)
    assert manager.get_profile("mine") == profile
    assert manager.get_family_config("llama") == config
    with pytest.raises(InvalidSetting, match="replace=True"):
        manager.register_profile(profile)
    with pytest.raises(InvalidSetting, match="replace=True"):
        manager.register_family(config)
    manager.register_profile(profile, replace=True)
    manager.register_family(config, replace=True)


def test_what_is_no_profile_or_family_config_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="must be a GlobalOptimizationProfile"):
        ConfigManager().register_profile({"name": "mine"})
    with pytest.raises(InvalidSetting, match="must be a ModelOptimizationConfig"):
        ConfigManager().register_family("glm")


def test_what_a_caller_does_to_its_copy_changes_nothing_here() -> None:
    manager = ConfigManager()
    manager.get_profile("balanced").default_settings.clear()
    manager.get_family_config("glm").optimizations[1].parameters.clear()
    assert manager.get_profile("balanced").members == ("flash_attention", "tensor_compression")
    assert manager.get_family_config("glm").optimizations[1].parameters == {"format": "int8"}


def test_nothing_is_read_before_it_is_asked_for_and_a_broken_file_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "broken.yaml").write_text("name: broken\n")
    manager = ConfigManager(tmp_path)
    assert "qwen" in manager.list_families()
    with pytest.raises(InvalidSetting, match=r"broken\.yaml.*default_settings: Field required"):
        manager.list_profiles()


def test_the_shared_manager_is_one() -> None:
    assert get_config_manager() is get_config_manager()
