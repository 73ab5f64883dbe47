"""The target set: the optimizations, with parameters, that a model is meant to have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from inference_pio.contract.registry import OptimizationRegistry


@dataclass(frozen=True)
class Wanted:
    """One member of a target set. An order applies or raises; a wish that does not apply is skipped with its reason."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    order: bool = True
    priority: int = 100
    dependencies: tuple[str, ...] = ()
    source: str = "by name"
    off: str | None = None


TargetSet = dict[str, Wanted]
Supply = Callable[[str], Wanted]


def with_dependencies(
    wanted: Iterable[Wanted], registry: OptimizationRegistry, supply: Supply = Wanted
) -> tuple[TargetSet, list[str]]:
    """The target set with everything its members depend on, and a note for each one that was added.

    `supply` gives what is added its parameters and priority.
    """
    target = {member.name: member for member in wanted}
    notes: list[str] = []
    pending = list(target.values())
    while pending:
        member = pending.pop(0)
        needed = dict.fromkeys((*registry.get(member.name).dependencies, *member.dependencies))
        target[member.name] = replace(target[member.name], dependencies=tuple(needed))
        if member.off:
            continue
        for name in needed:
            registry.get(name)
            if name not in target or target[name].off:
                added = replace(supply(name), order=member.order, source=f"needed by {member.name}", off=None)
                target[name] = added
                pending.append(added)
                notes.append(f"{name} was added: {member.name} depends on it.")
    return target, notes
