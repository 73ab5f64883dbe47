from __future__ import annotations

import pytest

from inference_pio.configuration import FamilyVariant
from inference_pio.configuration.family_members import check_said_once, joined, read_member
from inference_pio.contract.config import OptimizationConfig, OptimizationType
from inference_pio.errors import InvalidSetting, UnknownName

ONE = OptimizationConfig(name="one", parameters={"a": 1}, priority=3, dependencies=("two",))


def test_a_member_is_a_name_or_a_mapping() -> None:
    assert read_member("one", "here") == OptimizationConfig(name="one")
    given = {"name": "one", "optimization_type": "memory", "dependencies": ["two"]}
    member = read_member(given, "here")
    assert (member.optimization_type, member.dependencies) == (OptimizationType.MEMORY, ("two",))
    assert given["optimization_type"] == "memory"
    assert read_member(ONE, "here") is ONE


def test_a_wrong_member_is_told_with_its_place() -> None:
    with pytest.raises(UnknownName, match="of here. Did you mean 'priority'".replace(".", r"\.")):
        read_member({"name": "one", "priorty": 3}, "here")
    with pytest.raises(InvalidSetting, match="wrong settings for here: enabled: must be true or false"):
        read_member({"name": "one", "enabled": "true"}, "here")
    with pytest.raises(ValueError, match="here: optimization_type 'memry' is not known: give one of attention, memory"):
        read_member({"name": "one", "optimization_type": "memry"}, "here")


def test_what_is_said_by_name_lies_under_or_over_a_members_own() -> None:
    said = FamilyVariant(
        defaults={"one": {"a": 2, "b": 2}}, priorities={"one": 7}, dependencies={"one": ["two", "three"]}
    )
    under, over = joined(ONE, said), joined(ONE, said, over=True)
    assert (under.parameters, over.parameters) == ({"a": 1, "b": 2}, {"a": 2, "b": 2})
    assert (under.priority, under.dependencies) == (7, ("two", "three"))
    assert joined(ONE, FamilyVariant()) is ONE


def test_nothing_is_said_twice_in_different_words() -> None:
    check_said_once(ONE, {"a": 1, "b": 2}, 3)
    check_said_once(ONE, {}, None)
    with pytest.raises(ValueError, match="a of one is 2 in defaults and 1 in optimizations"):
        check_said_once(ONE, {"a": 2}, None)
    with pytest.raises(ValueError, match="the priority of one is 4 in priorities and 3 in optimizations"):
        check_said_once(ONE, {}, 4)
