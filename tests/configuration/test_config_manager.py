from __future__ import annotations

import threading
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


def test_lossless_is_faster_kernels_and_balanced_adds_int8_weights() -> None:
    manager = ConfigManager()
    exact = {"flash_attention": {}, "kernel_fusion": {}, "model_surgery": {}}
    assert manager.get_profile("lossless").default_settings == exact
    assert manager.get_profile("balanced").default_settings == {
        "flash_attention": {},
        "kernel_fusion": {},
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
    assert [member.name for member in config.enabled] == ["flash_attention", "kernel_fusion", "tensor_compression"]
    for kind in (None, *config.variants):
        for member in config.for_model_type(kind).members:
            assert member.optimization_type is registry.get(member.name).optimization_type
            registry.create(member.name, member.parameters)


@pytest.mark.parametrize(
    ("family", "kinds"), [("glm", ["glm4_moe", "glm4_moe_lite"]), ("qwen", ["qwen3", "qwen3_moe", "qwen3_vl"])]
)
def test_every_shipped_variant_is_of_a_kind_that_tells_its_family(family: str, kinds: list[str]) -> None:
    assert sorted(ConfigManager().get_family_config(family).variants) == kinds
    assert set(kinds) <= set(ModelFamily.of(family).model_types)


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
    manager.get_family_config("glm").defaults.clear()
    assert manager.get_profile("balanced").members == ("flash_attention", "kernel_fusion", "tensor_compression")
    assert manager.get_family_config("glm").member("tensor_compression").parameters == {"format": "int8"}


def test_nothing_is_read_before_it_is_asked_for_and_a_broken_file_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "broken.yaml").write_text("name: broken\n")
    manager = ConfigManager(tmp_path)
    assert "qwen" in manager.list_families()
    with pytest.raises(InvalidSetting, match=r"broken\.yaml.*default_settings: Field required"):
        manager.list_profiles()


def test_balanced_is_active_until_another_profile_is_made_so() -> None:
    manager = ConfigManager()
    assert manager.get_active_profile().name == "balanced"
    manager.set_active_profile("lossless")
    assert manager.get_active_profile().name == "lossless"
    with pytest.raises(UnknownName, match="Did you mean 'performance'"):
        manager.set_active_profile("perfomance")
    assert manager.get_active_profile().name == "lossless"


def test_a_profile_is_laid_over_a_family_config() -> None:
    manager = ConfigManager()
    glm = manager.get_family_config("glm")
    config = manager.apply_profile_to_model_config(glm, "lossless")
    assert [member.name for member in config.enabled] == ["flash_attention", "kernel_fusion", "model_surgery"]
    assert config == manager.apply_profile_to_model_config(glm, manager.get_profile("lossless"))
    with pytest.raises(InvalidSetting, match="a profile must be"):
        manager.apply_profile_to_model_config(glm, {"name": "mine"})
    with pytest.raises(InvalidSetting, match="a family config must be"):
        manager.apply_profile_to_model_config("glm", "lossless")


def test_what_is_no_config_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="must be a ModelOptimizationConfig"):
        ConfigManager().save_model_config({"family": "glm"}, tmp_path / "a.yaml")
    with pytest.raises(InvalidSetting, match="must be a GlobalOptimizationProfile"):
        ConfigManager().save_global_profile({"name": "mine"}, tmp_path / "a.yaml")
    assert list(tmp_path.iterdir()) == []


def test_a_users_files_are_read_and_wrong_ones_told_with_file_and_entry(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("family: llama\noptimizations: [flash_attention]\npriorities: {flash_attention: 3}\n")
    config = ConfigManager().load_model_config(path)
    assert config.member("flash_attention").priority == 3
    path.write_text("family: llama\noptimizations: [flash_attention]\npriorities: {flash_atention: 3}\n")
    with pytest.raises(InvalidSetting, match=r"mine\.yaml.*in priorities.*Did you mean 'flash_attention'"):
        ConfigManager().load_model_config(path)
    with pytest.raises(InvalidSetting, match=r"mine\.yaml.*unknown parameter 'family'"):
        ConfigManager().load_global_profile(path)


@pytest.mark.parametrize("attempt", range(3))
def test_threads_that_share_a_manager_lose_nothing(attempt: int) -> None:
    manager, start, refused = ConfigManager(), threading.Barrier(8), []

    def register(number: int) -> None:
        start.wait()
        manager.register_profile(GlobalOptimizationProfile(name=f"p{number}", default_settings={"a": {}}))
        try:
            manager.register_profile(GlobalOptimizationProfile(name="one", default_settings={"a": {}}))
        except InvalidSetting:
            refused.append(number)

    threads = [threading.Thread(target=register, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert manager.list_profiles() == sorted([*PROFILES, "one", *(f"p{number}" for number in range(8))])
    assert len(refused) == 7


def test_the_shared_manager_is_one() -> None:
    assert get_config_manager() is get_config_manager()
