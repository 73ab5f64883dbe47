"""What has to move: which standing steps go, which are played again, which are not touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inference_pio.plan.plan import PlannedStep
from inference_pio.undo.frame import Frame


@dataclass(frozen=True)
class Standing:
    """A step that stands on the live model, in the order in which it was made."""

    name: str
    signature: tuple[Any, ...]
    frame: Frame


@dataclass(frozen=True)
class Moves:
    """Steps to take back for good, steps to take back and play again, steps to make."""

    removed: tuple[str, ...]
    replayed: tuple[str, ...]
    made: tuple[str, ...]

    @property
    def taken_back(self) -> tuple[str, ...]:
        return self.removed + self.replayed


def moves_between(standing: Sequence[Standing], planned: Sequence[PlannedStep]) -> Moves:
    """The fewest moves from the standing steps to the planned ones.

    A standing step is touched only if its plan differs, if it stands on one that goes, or if it does not commute
    with a step that the plan puts before it: a new one, or one that was made after it.
    """
    wanted = {step.name: step for step in planned}
    rank = {step.name: place for place, step in enumerate(planned)}
    going = {step.name for step in standing if step.name not in wanted or wanted[step.name].signature != step.signature}
    while grown := {step.name for step in standing if _must_move(step, standing, going, wanted, rank)}:
        going |= grown
    standing_names = {step.name for step in standing}
    return Moves(
        removed=tuple(step.name for step in standing if step.name in going and step.name not in wanted),
        replayed=tuple(step.name for step in standing if step.name in going and step.name in wanted),
        made=tuple(step.name for step in planned if step.name in going or step.name not in standing_names),
    )


def _must_move(
    step: Standing, standing: Sequence[Standing], going: set[str], wanted: dict[str, PlannedStep], rank: dict[str, int]
) -> bool:
    if step.name in going:
        return False
    earlier = [other for other in standing[: standing.index(step)] if other.name in going]
    if any(step.frame.stands_on(other.frame) for other in earlier):
        return True
    if any(_turned_round(step, other, standing, rank) for other in standing if other.name not in going):
        return True
    kept = {other.name for other in standing} - going
    new_before = [plan for name, plan in wanted.items() if name not in kept and rank[name] < rank[step.name]]
    return any(not wanted[step.name].frame.commutes_with(plan.frame) for plan in new_before)


def _turned_round(step: Standing, other: Standing, standing: Sequence[Standing], rank: dict[str, int]) -> bool:
    """Whether two kept steps stand in one order and are planned in the other, and that matters."""
    stand_so = standing.index(step) < standing.index(other)
    planned_so = rank[step.name] < rank[other.name]
    return step is not other and stand_so != planned_so and not step.frame.commutes_with(other.frame)
