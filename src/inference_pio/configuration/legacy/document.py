"""Legacy documents: `{model_family, default_enabled, priority_order, optimizations: [{name, enabled, ...}]}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from inference_pio.configuration.families import ModelFamily
from inference_pio.configuration.legacy.members import Given, Member
from inference_pio.configuration.legacy.migration import Change
from inference_pio.configuration.legacy.words import DOCUMENT_KEYS, MEMBER_KEYS, NAMES, PARAMETERS
from inference_pio.contract.config import OptimizationConfig, OptimizationType
from inference_pio.errors import InvalidSetting, UnknownName


def family_of(document: Mapping[str, Any]) -> ModelFamily:
    """The family that a legacy configuration names; OTHER where it names none. Raises UnknownName."""
    named = document.get("model_family", "other")
    word = named.value if isinstance(named, Enum) else named
    if not isinstance(word, str) or word.lower() not in ModelFamily.known():
        raise UnknownName("family", word, ModelFamily.known(), where="in model_family")
    return ModelFamily.of(word)


def members_of_document(document: Mapping[str, Any]) -> tuple[list[Member], list[Change]]:
    """The optimizations of a legacy document in the order they stand, and what was renamed.

    Raises UnknownName, InvalidSetting naming the place.
    """
    for key in document:
        if key not in DOCUMENT_KEYS:
            raise UnknownName("key", key, DOCUMENT_KEYS, where="of a legacy configuration")
    entries = document.get("optimizations")
    if not isinstance(entries, list | tuple):
        raise InvalidSetting(f"optimizations must be a list of mappings, not {entries!r}.")
    by_default = _by_default(document.get("default_enabled", True))
    changes: list[Change] = []
    members = [_member(entry, f"optimizations.{n}", by_default, changes) for n, entry in enumerate(entries)]
    names = [member.name for member in members]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidSetting(f"optimizations: {', '.join(twice)} is given twice: keep one of them.")
    if isinstance(by_default, tuple):
        _check_named(by_default, names, "default_enabled")
    _put_in_order(document.get("priority_order"), {member.name: member for member in members}, changes)
    return members, changes


def _today(name: str) -> str:
    return NAMES.get(name, name)


def _by_default(given: object) -> bool | tuple[str, ...]:
    if isinstance(given, bool):
        return given
    if isinstance(given, list | tuple) and all(isinstance(name, str) for name in given):
        return tuple(_today(name) for name in given)
    raise InvalidSetting(f"default_enabled must be true, false or a list of names, not {given!r}.")


def _member(entry: object, place: str, by_default: bool | tuple[str, ...], changes: list[Change]) -> Member:
    raw = entry.model_dump(exclude_unset=True) if isinstance(entry, OptimizationConfig) else entry
    if not isinstance(raw, Mapping):
        raise InvalidSetting(f"{place} must be a mapping with a name, not {raw!r}.")
    for key in raw:
        if key not in MEMBER_KEYS:
            raise UnknownName("key", key, MEMBER_KEYS, where=f"of {place}")
    old = _typed(raw, "name", str, "a word", place)
    if not old:
        raise InvalidSetting(f"{place}.name is missing: say which optimization this is.")
    name = _today(old)
    if name != old:
        changes.append(Change(f"{place}.name {old!r}", repr(name)))
    stated = _typed(raw, "enabled", bool, "true or false", place)
    default = name in by_default if isinstance(by_default, tuple) else by_default
    if isinstance(by_default, tuple) and stated is not None and stated is not default:
        raise InvalidSetting(f"{place}.enabled and default_enabled contradict each other for {name}: give one of them.")
    enabled = default if stated is None else stated
    return Member(
        name, enabled, {place: enabled}, _given(raw, place), _typed(raw, "priority", int, "a whole number", place),
        _dependencies(raw, place), _type(raw, place),
    )  # fmt: skip


def _given(raw: Mapping[str, Any], place: str) -> list[Given]:
    parameters = raw.get("parameters") or {}
    if not isinstance(parameters, Mapping) or not all(isinstance(key, str) for key in parameters):
        raise InvalidSetting(f"{place}.parameters must be a mapping of names to values, not {parameters!r}.")
    return [Given(f"{place}.parameters.{key}", v, PARAMETERS.get(key, (key,)), v) for key, v in parameters.items()]


def _dependencies(raw: Mapping[str, Any], place: str) -> tuple[str, ...]:
    names = raw.get("dependencies") or ()
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise InvalidSetting(f"{place}.dependencies must be a list of names, not {names!r}.")
    return tuple(_today(name) for name in names)


def _type(raw: Mapping[str, Any], place: str) -> str | None:
    given = raw.get("optimization_type")
    told = given.value if isinstance(given, Enum) else given
    known = [kind.value for kind in OptimizationType]
    if told is None:
        return None
    if not isinstance(told, str) or told.lower() not in known:
        raise UnknownName("type", told, known, where=f"in {place}.optimization_type")
    return told.lower()


def _typed(raw: Mapping[str, Any], key: str, kind: type, wanted: str, place: str) -> Any:
    value = raw.get(key)
    if value is not None and type(value) is not kind:
        raise InvalidSetting(f"{place}.{key} must be {wanted}, not {value!r}.")
    return value


def _put_in_order(order: object, members: Mapping[str, Member], changes: list[Change]) -> None:
    """`priority_order` as priorities 10, 20, ...; priorities that say the same already stay as they are."""
    if order is None:
        return
    if not isinstance(order, list | tuple) or not all(isinstance(name, str) for name in order):
        raise InvalidSetting(f"priority_order must be a list of names, not {order!r}.")
    names = [_today(name) for name in order]
    _check_named(names, list(members), "priority_order")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidSetting(f"priority_order: {', '.join(twice)} is given twice: keep one of them.")
    stated = [priority for name in names if (priority := members[name].priority) is not None]
    if stated != sorted(stated):
        raise InvalidSetting(
            "priority_order and the priorities in optimizations contradict each other: give one of them."
        )
    if len(stated) == len(names):
        changes.append(Change("priority_order", "left out: the priorities say the same"))
        return
    for place, name in enumerate(names, 1):
        members[name].priority = 10 * place
    changes.append(
        Change("priority_order", f"priorities {', '.join(f'{n}: {10 * i}' for i, n in enumerate(names, 1))}")
    )


def _check_named(names: Sequence[str], known: Sequence[str], place: str) -> None:
    for name in names:
        if name not in known:
            raise UnknownName("optimization", name, known, where=f"in {place}, which is not in optimizations")
