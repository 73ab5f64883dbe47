from __future__ import annotations

from typing import Any

import pytest

from inference_pio.configuration.families import ModelFamily
from inference_pio.configuration.family_config import ModelOptimizationConfig
from inference_pio.contract.config import OptimizationConfig, OptimizationType
from inference_pio.errors import InvalidSetting, UnknownName


def test_members_may_be_configs_or_plain_data() -> None:
    flash = OptimizationConfig(name="flash_attention", priority=10)
    plain = {"name": "tensor_compression", "optimization_type": "memory", "dependencies": ["flash_attention"]}
    config = ModelOptimizationConfig(family="glm", optimizations=[flash, plain])
    assert config.family is ModelFamily.GLM
    assert config.optimizations[0] == flash
    assert config.optimizations[1].optimization_type is OptimizationType.MEMORY
    assert config.optimizations[1].dependencies == ("flash_attention",)


def test_members_are_found_by_name_and_the_enabled_ones_listed() -> None:
    members = [{"name": "one", "enabled": False}, {"name": "two"}]
    config = ModelOptimizationConfig(family=ModelFamily.QWEN, optimizations=members)
    assert [member.name for member in config.enabled] == ["two"]
    assert config.member("one") is config.optimizations[0]
    assert config.member("three") is None


def test_a_config_survives_a_round_trip_through_plain_data() -> None:
    config = ModelOptimizationConfig(family="glm", optimizations=[{"name": "one", "optimization_type": "compute"}])
    assert ModelOptimizationConfig(**config.model_dump(mode="json")) == config


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ModelOptimizationConfig(family="glm").family = ModelFamily.QWEN


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([{"name": "one"}, {"name": "one"}], "one is given twice"),
        ([{"name": "one", "optimization_type": "atention"}], "give one of attention, memory, compute, model_structure"),
        ([{"name": "one", "priority": "high"}], "must be a whole number"),
        ([{"name": "one", "enabled": 1}], "must be true or false"),
        ([3], "OptimizationConfig"),
        ({"one": {}}, "tuple"),
    ],
)
def test_wrong_members_are_told(members: Any, told: str) -> None:
    with pytest.raises(InvalidSetting, match=told):
        ModelOptimizationConfig(family="glm", optimizations=members)


def test_an_unknown_key_or_family_is_told_with_the_nearest_known_ones() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'priority'"):
        ModelOptimizationConfig(family="glm", optimizations=[{"name": "one", "priorty": 3}])
    with pytest.raises(UnknownName, match="Did you mean 'glm'"):
        ModelOptimizationConfig(family="glmm")
