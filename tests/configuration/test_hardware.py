from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inference_pio.configuration import (
    HARDWARE_CLASSES,
    ConfigManager,
    GlobalOptimizationProfile,
    PerformanceTargets,
    ResourceConstraints,
    check_hardware_class,
)
from inference_pio.errors import InvalidSetting, UnknownName

MINE = {
    "name": "mine",
    "default_settings": {"one": {"size": 4, "kind": "a"}, "two": {}},
    "performance_targets": {"memory_efficiency": 0.3},
    "max_kl": 0.5,
}


def mine(**hardware: Any) -> GlobalOptimizationProfile:
    return GlobalOptimizationProfile(**MINE, hardware=hardware)


def test_what_a_class_does_not_say_stays_as_the_profile_has_it() -> None:
    profile = mine(cpu={"default_settings": {"one": {"size": 8}, "three": None}, "without": ["two"]})
    here = profile.for_hardware("cpu")
    assert here.default_settings == {"one": {"size": 8, "kind": "a"}, "three": {}}
    assert (here.performance_targets, here.max_kl, here.hardware) == (profile.performance_targets, 0.5, {})
    for other in (None, "hopper"):
        assert profile.for_hardware(other).default_settings == MINE["default_settings"]


def test_targets_constraints_and_bounds_of_a_class_take_the_place_of_the_profiles() -> None:
    said = {
        "performance_targets": {"throughput_improvement": 5.0}, "resource_constraints": {"min_compute_capability": 9.0},
        "max_kl": 0.01, "max_perplexity_ratio": 1.1,
    }  # fmt: skip
    here = mine(hopper=said).for_hardware("hopper")
    assert here.performance_targets == PerformanceTargets(throughput_improvement=5.0)
    assert here.resource_constraints == ResourceConstraints(min_compute_capability=9.0)
    assert (here.max_kl, here.max_perplexity_ratio) == (0.01, 1.1)


def test_a_profile_without_sections_is_the_same_everywhere() -> None:
    profile = GlobalOptimizationProfile(**MINE)
    assert {str(profile.for_hardware(one)) for one in HARDWARE_CLASSES} == {str(profile)}


@pytest.mark.parametrize(
    ("hardware", "error", "told"),
    [
        ({"hoper": {}}, UnknownName, "unknown hardware class 'hoper'. Did you mean 'hopper'"),
        ({"cpu": {"withuot": []}}, UnknownName, r"of hardware\.cpu\. Did you mean 'without'"),
        ({"cpu": {"default_settings": {"one": 3}}}, InvalidSetting, "one"),
        ({"cpu": {"performance_targets": {"latency": 1}}}, UnknownName, "latency_reduction"),
        (["cpu"], InvalidSetting, "hardware"),
    ],
)
def test_wrong_sections_are_told(hardware: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        GlobalOptimizationProfile(**MINE, hardware=hardware)


def test_a_section_leaves_out_only_what_is_there_and_not_all_of_it() -> None:
    with pytest.raises(InvalidSetting, match=r"hardware\.cpu\.without: four is no member"):
        mine(cpu={"without": ["four"]}).for_hardware("cpu")
    with pytest.raises(InvalidSetting, match="leaves nothing for the hardware class 'cpu'"):
        mine(cpu={"without": ["one", "two"]}).for_hardware("cpu")


def test_an_unknown_class_is_told_with_the_nearest_one() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'small_gpu'"):
        check_hardware_class("small-gpu")
    with pytest.raises(UnknownName):
        mine().for_hardware("h100")


@pytest.mark.parametrize("name", ConfigManager().list_profiles())
def test_every_shipped_profile_speaks_of_every_class(name: str, tmp_path: Path) -> None:
    manager = ConfigManager()
    profile = manager.get_profile(name)
    assert set(profile.hardware) == set(HARDWARE_CLASSES)
    for one in HARDWARE_CLASSES:
        manager.save_global_profile(profile.for_hardware(one), tmp_path / "here.yaml")
        assert manager.load_global_profile(tmp_path / "here.yaml") == profile.for_hardware(one)
