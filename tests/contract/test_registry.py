"""The registry knows the classes, and admits none that breaks the contract."""

from __future__ import annotations

import pytest
from torch import nn

from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface
from inference_pio.contract.registry import OptimizationRegistry
from inference_pio.errors import InvalidSetting, UnknownName


class Good(OptimizationInterface):
    name = "good"
    optimization_type = OptimizationType.COMPUTE

    def apply(self, model: nn.Module) -> nn.Module:
        return model


def test_a_class_is_registered_found_made_and_forgotten() -> None:
    registry = OptimizationRegistry()
    assert registry.register(Good) is Good
    assert registry.register(Good) is Good
    assert ("good" in registry, len(registry), registry.names(), list(registry)) == (True, 1, ["good"], [Good])
    assert isinstance(registry.create("good"), Good)
    registry.unregister("good")
    assert registry.names() == []


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    registry = OptimizationRegistry()
    registry.register(Good)
    for call in (registry.get, registry.create, registry.unregister):
        with pytest.raises(UnknownName, match="Did you mean 'good'"):
            call("goood")


def test_a_name_belongs_to_one_class() -> None:
    registry = OptimizationRegistry()
    registry.register(Good)
    with pytest.raises(InvalidSetting, match="belongs to"):
        registry.register(type("Other", (Good,), {}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": 3}, "name"),
        ({"name": "Not So Good"}, "lower case"),
        ({"name": "x", "optimization_type": "memory"}, "optimization_type"),
        ({"name": "x", "stage": 2}, "stage"),
        ({"name": "x", "Parameters": dict}, "Settings"),
    ],
)
def test_a_class_that_breaks_the_contract_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidSetting, match=said):
        OptimizationRegistry().register(type("Bad", (Good,), change))


def test_a_class_that_does_not_say_how_to_apply_is_refused() -> None:
    body = {"name": "empty", "optimization_type": OptimizationType.COMPUTE}
    with pytest.raises(InvalidSetting, match="apply"):
        OptimizationRegistry().register(type("Empty", (OptimizationInterface,), body))


def test_what_is_not_an_optimization_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="OptimizationInterface"):
        OptimizationRegistry().register(nn.Linear)  # type: ignore[arg-type]
