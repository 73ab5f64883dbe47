"""The members of a family config: read from plain data, and joined with what is said of them by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from inference_pio.contract.config import OptimizationConfig, OptimizationType


class Speaker(Protocol):
    """What says something of optimizations by name: a family config, or a variant."""

    @property
    def defaults(self) -> Mapping[str, Mapping[str, Any]]: ...
    @property
    def priorities(self) -> Mapping[str, int]: ...
    @property
    def dependencies(self) -> Mapping[str, tuple[str, ...]]: ...


def read_member(given: object, place: str) -> object:
    """A member as a file gives it: a name, or a mapping with its type as a word and its dependencies as a list."""
    if isinstance(given, str):
        return OptimizationConfig.read({"name": given}, place)
    if not isinstance(given, dict):
        return given
    member: dict[str, Any] = dict(given)
    if isinstance(word := member.get("optimization_type"), str):
        member["optimization_type"] = _type_of(word, place)
    return OptimizationConfig.read(member, place)


def _type_of(word: str, place: str) -> OptimizationType:
    try:
        return OptimizationType(word)
    except ValueError:
        known = ", ".join(kind.value for kind in OptimizationType)
        raise ValueError(f"{place}: optimization_type {word!r} is not known: give one of {known}") from None


def check_said_once(member: OptimizationConfig, defaults: Mapping[str, Any], priority: int | None) -> None:
    for key, value in defaults.items():
        if key in member.parameters and member.parameters[key] != value:
            raise ValueError(
                f"{key} of {member.name} is {value!r} in defaults and {member.parameters[key]!r} in optimizations: "
                "give one of them"
            )
    if priority is not None and "priority" in member.model_fields_set and member.priority != priority:
        raise ValueError(
            f"the priority of {member.name} is {priority} in priorities and {member.priority} in optimizations: "
            "give one of them"
        )


def joined(member: OptimizationConfig, speaker: Speaker, over: bool = False) -> OptimizationConfig:
    """A member with what is said of it by name; `over` its own parameters, or under them."""
    name = member.name
    changes: dict[str, Any] = {}
    if said := speaker.defaults.get(name):
        changes["parameters"] = {**member.parameters, **said} if over else {**said, **member.parameters}
    if name in speaker.priorities:
        changes["priority"] = speaker.priorities[name]
    if needed := speaker.dependencies.get(name):
        changes["dependencies"] = tuple(dict.fromkeys((*member.dependencies, *needed)))
    return member.model_copy(update=changes) if changes else member
