"""Flat flags (`use_flash_attention_2: true`), from a mapping, an object or keyword arguments."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any

from inference_pio.configuration.legacy.members import Given, Member, word
from inference_pio.configuration.legacy.migration import Unmatched
from inference_pio.configuration.legacy.words import FLAGS, PART_OF_ANOTHER, SWITCHES, VALUES, Value
from inference_pio.errors import InvalidSetting, UnknownName


def flags_on(thing: object) -> tuple[dict[str, Any], list[Unmatched]]:
    """The flags that an object holds as attributes, and what looks like a flag and is none."""
    given = {name: _read(thing, name) for name in FLAGS}
    found = {
        name: os.fspath(value) if isinstance(value, os.PathLike) else value
        for name, value in given.items()
        if value is not None
    }
    foreign = {name: _read(thing, name) for name in dir(thing) if _is_like_a_flag(name) and name not in FLAGS}
    return found, [_foreign(name, value) for name, value in foreign.items() if not callable(value)]


def _read(thing: object, name: str) -> Any:
    try:
        return getattr(thing, name, None)
    except Exception as error:
        raise InvalidSetting(f"{name} of this {type(thing).__name__} cannot be read: {error}") from error


def _is_like_a_flag(name: str) -> bool:
    """By its beginning, or as a flag that was mistyped."""
    return name.startswith(("use_", "enable_")) or bool(difflib.get_close_matches(name, FLAGS, n=1, cutoff=0.85))


def members_of_flags(flags: Mapping[str, Any]) -> tuple[list[Member], list[Unmatched]]:
    """The optimizations that flags speak of; a flag that is None is as good as not given.

    Raises UnknownName for a flag that is not known, InvalidSetting for a wrong value or flags that contradict.
    """
    for name in flags:
        if name not in FLAGS:
            raise UnknownName("flag", name, FLAGS)
    given = {name: value for name, value in flags.items() if value is not None}
    members: dict[str, Member] = {}
    for name in (name for name in SWITCHES if name in given):
        _switch(members, name, given[name])
    unmatched = [one for member in members.values() for one in _settle_switches(member)]
    for name in (name for name in VALUES if name in given):
        _check_value(name, given[name], VALUES[name])
        for owner in VALUES[name].owners:
            member = members.setdefault(owner, Member(owner, enabled=False))
            member.given.append(_given(name, given[name], VALUES[name]))
    return list(members.values()), unmatched


def _switch(members: dict[str, Member], name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidSetting(
            f"{name} must be true or false, not {value!r}: write it without quotes, and not as a number."
        )
    members.setdefault(SWITCHES[name], Member(SWITCHES[name], enabled=False)).places[name] = value


def _settle_switches(member: Member) -> list[Unmatched]:
    """One optimization, several flags: they must agree, but a part that is off says nothing about the whole."""
    off_parts = [name for name, value in member.places.items() if name in PART_OF_ANOTHER and not value]
    whole = {name: value for name, value in member.places.items() if name not in off_parts} or member.places
    if len(set(whole.values())) > 1:
        told = " and ".join(f"{name}={word(value)}" for name, value in whole.items())
        raise InvalidSetting(f"{told} contradict each other: both speak of {member.name}. Give one of them.")
    member.enabled, member.places = any(whole.values()), whole
    reason = f"{member.name} has no switch for this part alone"
    return [Unmatched(name, False, reason) for name in off_parts if member.enabled]


def _check_value(name: str, value: object, meant: Value) -> None:
    numbers = {float: (int, float), int: (int,), str: (str,)}[meant.kind]
    wanted = {float: "a number", int: "a whole number", str: "a word"}[meant.kind]
    if isinstance(value, bool) or not isinstance(value, numbers):
        raise InvalidSetting(f"{name} must be {wanted}, not {value!r}.")
    if meant.bounds and isinstance(value, int | float) and not meant.bounds[0] <= value <= meant.bounds[1]:
        raise InvalidSetting(f"{name} must be from {meant.bounds[0]} to {meant.bounds[1]}, not {value!r}.")


def _given(name: str, value: Any, meant: Value) -> Given:
    today = meant.called.get(value, f"of {name}={value!r}") if meant.called is not None else value
    return Given(name, value, meant.parameters, today)


def _foreign(name: str, value: object) -> Unmatched:
    near = difflib.get_close_matches(name, FLAGS, n=1, cutoff=0.8)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    plain = value if value is None or isinstance(value, bool | int | float | str) else repr(value)
    return Unmatched(name, plain, f"no optimization was ever switched by it{hint}")
