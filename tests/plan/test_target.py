"""The target set grows by what its members depend on, and says so."""

from __future__ import annotations

import pytest
from torch import nn

from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface
from inference_pio.contract.registry import OptimizationRegistry
from inference_pio.errors import UnknownName
from inference_pio.plan.target import Wanted, with_dependencies


class Base(OptimizationInterface):
    name = "base"
    optimization_type = OptimizationType.COMPUTE

    def apply(self, model: nn.Module) -> nn.Module:
        return model


class Middle(Base):
    name = "middle"
    dependencies = ("base",)


class Top(Base):
    name = "top"
    dependencies = ("middle",)


@pytest.fixture
def registry() -> OptimizationRegistry:
    registry = OptimizationRegistry()
    for cls in (Base, Middle, Top):
        registry.register(cls)
    return registry


def test_dependencies_of_dependencies_are_added(registry: OptimizationRegistry) -> None:
    target, notes = with_dependencies([Wanted("top")], registry)
    assert list(target) == ["top", "middle", "base"]
    assert notes == ["middle was added: top depends on it.", "base was added: middle depends on it."]
    assert target["base"].source == "needed by middle"


def test_what_is_there_is_not_added_again(registry: OptimizationRegistry) -> None:
    target, notes = with_dependencies([Wanted("base", {"x": 1}), Wanted("middle")], registry)
    assert notes == []
    assert target["base"].parameters == {"x": 1}


def test_what_a_wish_needs_is_a_wish(registry: OptimizationRegistry) -> None:
    assert not with_dependencies([Wanted("middle", order=False)], registry)[0]["base"].order


def test_what_is_switched_off_asks_for_nothing(registry: OptimizationRegistry) -> None:
    target, notes = with_dependencies([Wanted("top", order=False, off="switched off")], registry)
    assert (list(target), notes) == (["top"], [])


def test_dependencies_of_a_configuration_count_too(registry: OptimizationRegistry) -> None:
    assert "top" in with_dependencies([Wanted("base", dependencies=("top",))], registry)[0]


def test_an_unknown_dependency_is_named(registry: OptimizationRegistry) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'base'"):
        with_dependencies([Wanted("middle", dependencies=("bas",))], registry)


def test_a_member_that_is_switched_off_but_needed_is_switched_on_and_told(registry: OptimizationRegistry) -> None:
    target, notes = with_dependencies([Wanted("base", order=False, off="switched off"), Wanted("middle")], registry)
    assert target["base"].off is None
    assert notes == ["base was added: middle depends on it."]


def test_a_circle_of_dependencies_ends_and_is_left_to_the_order(registry: OptimizationRegistry) -> None:
    target, _ = with_dependencies([Wanted("base", dependencies=("top",))], registry)
    assert set(target) == {"base", "top", "middle"}


def test_the_members_given_are_not_changed(registry: OptimizationRegistry) -> None:
    given = Wanted("middle")
    target, _ = with_dependencies([given], registry)
    assert (given.dependencies, target["middle"].dependencies) == ((), ("base",))


def test_of_two_wishes_for_one_name_the_later_one_counts(registry: OptimizationRegistry) -> None:
    target, _ = with_dependencies([Wanted("base", {"x": 1}), Wanted("base", {"x": 2})], registry)
    assert target["base"].parameters == {"x": 2}
