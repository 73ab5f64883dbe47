from __future__ import annotations

from typing import Any

import pytest

from inference_pio.configuration import PerformanceTargets, ResourceConstraints
from inference_pio.configuration.profiles import GlobalOptimizationProfile
from inference_pio.errors import InvalidSetting, UnknownName


def test_members_keep_their_order_and_may_stand_without_parameters() -> None:
    profile = GlobalOptimizationProfile(name="mine", default_settings={"two": None, "one": {"size": 4}})
    assert profile.members == ("two", "one")
    assert profile.default_settings == {"two": {}, "one": {"size": 4}}


def test_a_profile_survives_a_round_trip_through_plain_data() -> None:
    profile = GlobalOptimizationProfile(
        name="mine", default_settings={"one": {}}, performance_targets={"latency_reduction": 0.3}
    )
    assert GlobalOptimizationProfile(**profile.model_dump(mode="json")) == profile


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "Mine"},
        {"name": "../mine"},
        {"name": 3},
        {"default_settings": {}},
        {"default_settings": ["one"]},
        {"default_settings": {"one": 3}},
        {"description": None},
        {"performance_targets": {"latency_reduction": 2}},
        {"performance_targets": ["latency_reduction"]},
        {"resource_constraints": {"prefer_gpu_over_cpu": "yes"}},
    ],
)
def test_wrong_values_are_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting, match=next(iter(wrong))):
        GlobalOptimizationProfile(**{"name": "mine", "default_settings": {"one": {}}, **wrong})


def test_an_unknown_key_is_told_with_the_nearest_known_one() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'default_settings'"):
        GlobalOptimizationProfile(name="mine", default_setting={})


def test_targets_and_constraints_are_their_own_kinds_and_empty_unless_said() -> None:
    profile = GlobalOptimizationProfile(
        name="mine", default_settings={"one": {}}, resource_constraints={"min_compute_capability": 8.0},
        performance_targets=None,
    )  # fmt: skip
    assert profile.performance_targets == PerformanceTargets()
    assert profile.resource_constraints == ResourceConstraints(min_compute_capability=8.0)


def test_an_unknown_target_is_told_with_the_nearest_known_one() -> None:
    with pytest.raises(UnknownName, match=r"of performance_targets\. Did you mean 'latency_reduction'"):
        GlobalOptimizationProfile(name="mine", default_settings={"one": {}}, performance_targets={"latency": 0.3})
