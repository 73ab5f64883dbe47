"""The members of a legacy configuration held against the registry: the new document, and what has no place in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inference_pio.configuration.families import ModelFamily
from inference_pio.configuration.legacy.members import Given, Member, word
from inference_pio.configuration.legacy.migration import Change, Migration, Unmatched
from inference_pio.configuration.legacy.words import DOCUMENTED, PARAMETERS
from inference_pio.errors import InvalidSetting, UnknownName

if TYPE_CHECKING:
    from inference_pio.contract.registry import OptimizationRegistry


def settle(
    family: ModelFamily, members: Sequence[Member], registry: OptimizationRegistry,
    changes: Sequence[Change] = (), unmatched: Sequence[Unmatched] = (),
) -> Migration:  # fmt: skip
    """The family config that does what the members ask, as far as what is registered can do it.

    Raises UnknownName for a name or parameter that was never known, InvalidSetting for a value that is wrong.
    """
    found = _Document(registry, list(changes), list(unmatched))
    for member in members:
        found.add(member)
    found.check()
    return Migration({"family": str(family), **found.plain()}, tuple(found.changes), found.without_counterpart())


@dataclass
class _Document:
    registry: OptimizationRegistry
    changes: list[Change]
    unmatched: list[Unmatched]
    optimizations: list[Any] = field(default_factory=list)
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)
    priorities: dict[str, int] = field(default_factory=dict)
    dependencies: dict[str, list[str]] = field(default_factory=dict)
    carried: set[str] = field(default_factory=set)

    def plain(self) -> dict[str, Any]:
        """Without what is empty."""
        kept = {"defaults": self.defaults, "priorities": self.priorities, "dependencies": self.dependencies}
        return {"optimizations": self.optimizations, **{key: value for key, value in kept.items() if value}}

    def without_counterpart(self) -> tuple[Unmatched, ...]:
        """Each once: a value that several optimizations could have taken is matched where one of them does."""
        reasons: dict[str, list[Unmatched]] = {}
        for one in self.unmatched:
            if one.key not in self.carried:
                reasons.setdefault(one.key, []).append(one)
        return tuple(
            Unmatched(key, several[0].value, ", ".join(dict.fromkeys(one.reason for one in several)))
            for key, several in reasons.items()
        )

    def add(self, member: Member) -> None:
        if not self._is_registered(member.name, next(iter(member.places), "")):
            self._report(member)
            return
        self._check_type(member)
        self.optimizations.append(member.name if member.enabled else {"name": member.name, "enabled": False})
        for place, value in member.places.items():
            if not place.startswith("optimizations."):
                self._changed(place, value, f"{member.name} {'on' if value else 'off'}")
        for given in member.given:
            self._parameter(member, given)
        if member.priority is not None:
            self.priorities[member.name] = member.priority
        if needed := [name for name in member.dependencies if self._can_need(member, name)]:
            self.dependencies[member.name] = needed

    def check(self) -> None:
        """All parameters of each together. Raises InvalidSetting for those that contradict."""
        for name, parameters in self.defaults.items():
            self.registry.create(name, parameters)

    def _is_registered(self, name: str, place: str) -> bool:
        if name not in self.registry and name not in DOCUMENTED:
            raise UnknownName("optimization", name, {*self.registry.names(), *DOCUMENTED}, where=f"in {place}")
        return name in self.registry

    def _report(self, member: Member) -> None:
        """An optimization that is not there: what asks for it is unmatched, what switches it off is fulfilled."""
        reason = f"{member.name} is not registered here"
        for place, value in member.places.items():
            if value:
                self.unmatched.append(Unmatched(place, True, reason))
            else:
                self._changed(place, value, f"left out: {reason}, so it is off")
        self.unmatched += [Unmatched(given.place, given.value, reason) for given in member.given]

    def _check_type(self, member: Member) -> None:
        known = self.registry.get(member.name).optimization_type.value
        if member.optimization_type not in (None, known):
            place = next(iter(member.places))
            raise InvalidSetting(
                f"{place}.optimization_type: {member.name} is of type {known}, not {member.optimization_type}."
            )

    def _parameter(self, member: Member, given: Given) -> None:
        fields = self.registry.get(member.name).Parameters.model_fields
        name = next((name for name in given.names if name in fields), None)
        own = given.place.rpartition(".")[2]
        if name is None and given.names == (own,) and own not in PARAMETERS:
            raise UnknownName("parameter", own, fields, where=f"of {member.name} in {given.place}")
        if name is None:
            self.unmatched.append(Unmatched(given.place, given.value, f"{member.name} has no such parameter here"))
            return
        refused = self._refused(member.name, {name: given.today})
        if refused and name == own:
            raise InvalidSetting(f"{given.place}: {refused}.")
        if refused:
            self.unmatched.append(Unmatched(given.place, given.value, f"{member.name} cannot do this here: {refused}"))
            return
        self.defaults.setdefault(member.name, {})[name] = given.today
        self.carried.add(given.place)
        if name != own:
            self._changed(given.place, given.value, f"{name} of {member.name}: {given.today!r}")

    def _refused(self, name: str, parameters: dict[str, Any]) -> str | None:
        try:
            self.registry.create(name, parameters)
        except (InvalidSetting, UnknownName) as error:
            return str(error).rstrip(".")
        return None

    def _can_need(self, member: Member, name: str) -> bool:
        place = f"{next(iter(member.places))}.dependencies"
        if self._is_registered(name, place):
            return True
        self.unmatched.append(Unmatched(place, name, f"{name} is not registered here"))
        return False

    def _changed(self, place: str, value: object, new: str) -> None:
        self.changes.append(Change(f"{place}: {word(value)}", new))
