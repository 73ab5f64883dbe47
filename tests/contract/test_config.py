from __future__ import annotations

from typing import Any

import pytest

from inference_pio.contract.config import OptimizationConfig, OptimizationType
from inference_pio.errors import InvalidSetting, UnknownName


def test_the_documented_call_works() -> None:
    config = OptimizationConfig(
        name="flash_attention",
        enabled=True,
        optimization_type=OptimizationType.ATTENTION,
        priority=10,
        parameters={"use_triton": True},
    )
    assert (config.name, config.enabled, config.priority) == ("flash_attention", True, 10)
    assert config.parameters == {"use_triton": True}
    assert config.dependencies == ()


def test_dependencies_may_be_given_as_a_list() -> None:
    assert OptimizationConfig(name="a", dependencies=["b", "c"]).dependencies == ("b", "c")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": 5}, "name"),
        ({"name": "a", "enabled": 1}, "enabled: must be true or false"),
        ({"name": "a", "enabled": "yes"}, "enabled: must be true or false"),
        ({"name": "a", "priority": True}, "priority: must be a whole number"),
        ({"name": "a", "priority": 1.0}, "priority: must be a whole number"),
        ({"name": "a", "priority": "high"}, "priority: must be a whole number"),
        ({"name": "a", "optimization_type": "attentive"}, "optimization_type"),
        ({"name": "a", "dependencies": "b"}, "dependencies"),
        ({"name": "a", "dependencies": [1]}, "dependencies"),
        ({"name": "a", "parameters": [("a", 1)]}, "parameters"),
        ({"name": "a", "parameters": {1: 2}}, "parameters"),
    ],
)
def test_wrong_values_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        OptimizationConfig(**given)


def test_an_unknown_field_is_told_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'priority'"):
        OptimizationConfig(name="a", prority=1)


def test_a_configuration_is_frozen_and_keeps_its_own_parameters() -> None:
    parameters = {"size": 1}
    config = OptimizationConfig(name="a", parameters=parameters)
    parameters["size"] = 2
    assert config.parameters == {"size": 1}
    assert OptimizationConfig(name="b").parameters is not OptimizationConfig(name="b").parameters
    with pytest.raises(ValueError, match="frozen"):
        config.priority = 1


def test_a_dump_builds_the_same_configuration_and_so_does_json() -> None:
    config = OptimizationConfig(name="a", optimization_type=OptimizationType.MEMORY, dependencies=("b",))
    assert OptimizationConfig(**config.model_dump()) == config
    assert OptimizationConfig.model_validate_json(config.model_dump_json()) == config
    assert OptimizationConfig(name="a", optimization_type="memory", dependencies=["b"]) == config


def test_the_four_types_are_those_of_the_specification() -> None:
    assert [kind.name for kind in OptimizationType] == ["ATTENTION", "MEMORY", "COMPUTE", "MODEL_STRUCTURE"]
