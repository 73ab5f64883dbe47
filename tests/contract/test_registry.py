from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from inference_pio.contract import registry as registry_module
from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage
from inference_pio.contract.registry import ENTRY_POINTS, OptimizationRegistry
from inference_pio.errors import InvalidSetting, UnknownName


class Good(OptimizationInterface):
    name = "good_one"
    optimization_type = OptimizationType.COMPUTE

    def apply(self, model: nn.Module) -> nn.Module:
        return model


def variant(**changed: Any) -> type[OptimizationInterface]:
    return type("Variant", (Good,), changed)


def test_a_class_is_registered_found_and_made() -> None:
    registry = OptimizationRegistry()
    assert registry.register(Good) is Good
    assert registry.register(Good) is Good, "twice is once"
    assert registry.get("good_one") is Good
    assert isinstance(registry.create("good_one", {}), Good)
    assert "good_one" in registry
    assert (len(registry), registry.names(), list(registry)) == (1, ["good_one"], [Good])


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    registry = OptimizationRegistry()
    registry.register(Good)
    for ask in (registry.get, registry.create, registry.unregister):
        with pytest.raises(UnknownName, match=r"unknown optimization 'god_one'. Did you mean 'good_one'"):
            ask("god_one")


def test_a_name_is_given_once_and_free_again_after_unregistering() -> None:
    registry = OptimizationRegistry()
    registry.register(Good)
    other = variant()
    with pytest.raises(InvalidSetting, match=r"'good_one' belongs to .*\.Good already"):
        registry.register(other)
    registry.unregister("good_one")
    assert registry.register(other) is other


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (5, "5 is not a subclass of OptimizationInterface"),
        (nn.Identity, "is not a subclass of OptimizationInterface"),
        (Good(), "is not a subclass of OptimizationInterface"),
        (OptimizationInterface, "OptimizationInterface.name must be a str"),
        (variant(name=5), "Variant.name must be a str"),
        (variant(name="Good One"), "must be lower case words joined by underscores"),
        (variant(name="good-one"), "must be lower case words"),
        (variant(name=""), "must be lower case words"),
        (variant(name="good_one\n"), "must be lower case words"),
        (variant(optimization_type="compute"), "Variant.optimization_type must be a OptimizationType"),
        (variant(stage=2), "Variant.stage must be a Stage"),
        (variant(Parameters=dict), "Variant.Parameters must be a subclass of Settings"),
        (variant(Parameters=None), "Variant.Parameters must be a subclass of Settings"),
        (variant(dependencies="good_one"), "Variant.dependencies must be a tuple of names"),
        (variant(dependencies=(1,)), "Variant.dependencies must be a tuple of names"),
        (variant(apply=OptimizationInterface.apply), "does not say how to apply"),
    ],
)
def test_a_class_that_breaks_the_contract_is_refused(cls: Any, message: str) -> None:
    registry = OptimizationRegistry()
    with pytest.raises(InvalidSetting, match=message):
        registry.register(cls)
    assert len(registry) == 0


def test_registering_works_as_a_decorator() -> None:
    registry = OptimizationRegistry()

    @registry.register
    class Decorated(Good):
        name = "decorated"
        stage = Stage.STRUCTURE

    assert registry.get("decorated") is Decorated


def test_what_other_packages_offer_is_registered_and_a_broken_one_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("no such module")

    offered = [SimpleNamespace(load=lambda: Good)]
    monkeypatch.setattr(registry_module, "entry_points", lambda group: offered if group == ENTRY_POINTS else [])
    registry = OptimizationRegistry()
    registry.load_entry_points()
    assert registry.names() == ["good_one"]
    offered.append(SimpleNamespace(load=broken))
    with pytest.raises(ImportError, match="no such module"):
        registry.load_entry_points()
