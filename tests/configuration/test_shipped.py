from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from inference_pio.configuration import (
    ConfigManager,
    GlobalOptimizationProfile,
    ModelOptimizationConfig,
    create_balanced_profile,
    create_experimental_profile,
    create_glm_optimization_config,
    create_lossless_profile,
    create_memory_efficient_profile,
    create_performance_profile,
    create_qwen_optimization_config,
)

PROFILES = [
    create_balanced_profile, create_performance_profile, create_memory_efficient_profile, create_experimental_profile,
    create_lossless_profile,
]  # fmt: skip
FAMILIES = [create_glm_optimization_config, create_qwen_optimization_config]


@pytest.mark.parametrize("create", PROFILES)
def test_each_is_the_shipped_profile_of_that_name(create: Callable[[], GlobalOptimizationProfile]) -> None:
    name = create.__name__.removeprefix("create_").removesuffix("_profile")
    assert create() == ConfigManager().get_profile(name)


@pytest.mark.parametrize("create", FAMILIES)
def test_each_is_the_shipped_config_of_that_family(create: Callable[[], ModelOptimizationConfig]) -> None:
    assert create() == ConfigManager().get_family_config(create.__name__.split("_")[1])


def test_what_is_registered_in_its_place_changes_nothing() -> None:
    manager = ConfigManager()
    mine = GlobalOptimizationProfile(name="balanced", default_settings={"flash_attention": {}})
    manager.register_profile(mine, replace=True)
    assert manager.get_profile("balanced") == mine != create_balanced_profile()


@pytest.mark.parametrize("ending", ["yaml", "json"])
@pytest.mark.parametrize("create", PROFILES)
def test_every_profile_survives_a_round_trip(
    create: Callable[[], GlobalOptimizationProfile], ending: str, tmp_path: Path
) -> None:
    manager, path = ConfigManager(), tmp_path / f"profile.{ending}"
    manager.save_global_profile(create(), path)
    read = manager.load_global_profile(str(path))
    assert read == create()
    assert read.model_fields_set == create().model_fields_set


@pytest.mark.parametrize("ending", ["yaml", "json"])
@pytest.mark.parametrize("create", FAMILIES)
def test_every_family_config_survives_a_round_trip(
    create: Callable[[], ModelOptimizationConfig], ending: str, tmp_path: Path
) -> None:
    manager, path = ConfigManager(), tmp_path / f"family.{ending}"
    manager.save_model_config(create(), path)
    read = manager.load_model_config(path)
    assert read == create()
    assert [one.model_fields_set for one in read.members] == [one.model_fields_set for one in create().members]
