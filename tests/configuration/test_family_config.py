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
        ([3], r"optimizations\.0"),
        (["one", "one"], "one is given twice"),
        ([""], r"optimizations\.0.*name"),
        ({"one": {}}, "tuple"),
    ],
)
def test_wrong_members_are_told(members: Any, told: str) -> None:
    with pytest.raises(InvalidSetting, match=told):
        ModelOptimizationConfig(family="glm", optimizations=members)


def test_members_may_be_names_and_what_is_said_of_them_by_name_is_joined() -> None:
    config = ModelOptimizationConfig(
        family="glm", optimizations=["one", {"name": "two", "parameters": {"a": 1}, "dependencies": ["one"]}],
        defaults={"two": {"b": 2}}, priorities={"one": 5}, dependencies={"two": ["three", "one"]},
    )  # fmt: skip
    one, two = config.members
    assert (one.priority, one.parameters, one.dependencies) == (5, {}, ())
    assert (two.priority, two.parameters, two.dependencies) == (100, {"b": 2, "a": 1}, ("one", "three"))
    assert config.member("two") == two


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"defaults": {"tow": {}}}, r"in defaults.*Did you mean 'two'"),
        ({"priorities": {"tow": 1}}, r"in priorities"),
        ({"dependencies": {"tow": []}}, r"in dependencies"),
        ({"variants": {"big": {"priorities": {"tow": 1}}}}, r"in variants\.big\.priorities"),
        ({"variants": {"big": {"optimizations": ["tow"]}}}, r"in variants\.big\.optimizations"),
        ({"variants": {"big": {"priority": {}}}}, r"of variants\.big.*Did you mean 'priorities'"),
    ],
)
def test_names_that_are_not_listed_are_told_with_their_place(more: dict[str, Any], told: str) -> None:
    with pytest.raises(UnknownName, match=told):
        ModelOptimizationConfig(family="glm", optimizations=["one", "two"], **more)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"defaults": {"one": {"a": 2}}}, "a of one is 2 in defaults and 1 in optimizations"),
        ({"priorities": {"one": 2}}, "the priority of one is 2 in priorities and 1 in optimizations"),
        ({"priorities": {"one": "2"}}, r"priorities\.one"),
        ({"defaults": {"one": 3}}, r"defaults\.one"),
        ({"variants": {"big": 3}}, r"variants\.big"),
        ({"variants": ["big"]}, "variants"),
        (
            {"variants": {"big": {"priorities": {"one": 1.5}}}},
            r"variants\.big: priorities\.one|variants\.big.*priorities",
        ),
    ],
)
def test_contradictions_and_wrong_shapes_are_told_with_their_place(more: dict[str, Any], told: str) -> None:
    member = {"name": "one", "parameters": {"a": 1}, "priority": 1}
    with pytest.raises(InvalidSetting, match=told):
        ModelOptimizationConfig(family="glm", optimizations=[member], **more)


def test_a_variant_holds_for_its_kind_of_model_alone() -> None:
    config = ModelOptimizationConfig(
        family="glm", optimizations=["one", "two", {"name": "off", "enabled": False}],
        defaults={"two": {"a": 1, "b": 1}},
        variants={"big": {"optimizations": ["two"], "defaults": {"two": {"b": 2}}, "priorities": {"two": 3}}},
    )  # fmt: skip
    assert config.for_model_type(None) is config.for_model_type("small") is config.for_model_type(3) is config
    big = config.for_model_type("big")
    assert [member.name for member in big.enabled] == ["two"]
    assert (big.member("two").parameters, big.member("two").priority) == ({"a": 1, "b": 2}, 3)
    assert big.member("one") is None
    assert big.member("off").enabled is False


def test_a_variant_that_lists_what_the_family_switches_off_switches_it_on() -> None:
    off = {"name": "off", "enabled": False}
    config = ModelOptimizationConfig(
        family="glm", optimizations=[off], variants={"big": {"optimizations": ["off"]}, "same": {}}
    )
    assert config.for_model_type("big").member("off").enabled
    assert not config.for_model_type("same").member("off").enabled


def test_an_unknown_key_or_family_is_told_with_the_nearest_known_ones() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'priority'"):
        ModelOptimizationConfig(family="glm", optimizations=[{"name": "one", "priorty": 3}])
    with pytest.raises(UnknownName, match="Did you mean 'glm'"):
        ModelOptimizationConfig(family="glmm")
