"""`OptimizationConfig` as the documented calls make it."""

from __future__ import annotations

import pytest

from inference_pio.contract.config import OptimizationConfig, OptimizationType
from inference_pio.errors import InvalidSetting, UnknownName


def test_the_documented_call_works() -> None:
    config = OptimizationConfig(
        name="flash_attention", enabled=True, optimization_type=OptimizationType.ATTENTION, priority=10,
        parameters={"use_triton": True},
    )  # fmt: skip
    assert (config.name, config.priority, config.dependencies) == ("flash_attention", 10, ())


def test_what_is_left_out_has_a_default() -> None:
    config = OptimizationConfig(name="x")
    assert (config.enabled, config.optimization_type, config.parameters) == (True, None, {})


@pytest.mark.parametrize(
    "wrong", [{"enabled": "yes"}, {"enabled": 1}, {"priority": 1.5}, {"priority": True}, {"name": ""}]
)
def test_wrong_types_are_told(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidSetting, match=next(iter(wrong))):
        OptimizationConfig(**{"name": "x", **wrong})


def test_unknown_fields_are_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'priority'"):
        OptimizationConfig(name="x", prority=1)


def test_a_config_survives_json() -> None:
    config = OptimizationConfig(name="x", optimization_type=OptimizationType.MEMORY, dependencies=("y",))
    assert OptimizationConfig.model_validate_json(config.model_dump_json()) == config
