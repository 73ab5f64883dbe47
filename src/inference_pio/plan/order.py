"""The order of steps: dependencies first, then stages, then priority, then the name."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping

from inference_pio.contract.optimization import Stage
from inference_pio.errors import DependencyCycle
from inference_pio.plan.target import Wanted


def in_order(target: Mapping[str, Wanted], stages: Mapping[str, Stage]) -> tuple[list[str], list[str]]:
    """Names in the order they are applied, with notes where a priority or a dependency meets a stage.

    Raises DependencyCycle naming the circle.
    """
    waiting = {name: {need for need in member.dependencies if need in target} for name, member in target.items()}
    ready = [_rank(target[name], stages) for name, needs in waiting.items() if not needs]
    heapq.heapify(ready)
    names: list[str] = []
    while ready:
        name = heapq.heappop(ready)[-1]
        names.append(name)
        del waiting[name]
        for other, needs in waiting.items():
            if name in needs:
                needs.discard(name)
                if not needs:
                    heapq.heappush(ready, _rank(target[other], stages))
    if waiting:
        raise DependencyCycle(f"these optimizations need each other in a circle: {' -> '.join(_circle(waiting))}.")
    return names, _notes(names, target, stages)


def _rank(member: Wanted, stages: Mapping[str, Stage]) -> tuple[int, int, str]:
    return int(stages[member.name]), member.priority, member.name


def _circle(waiting: Mapping[str, set[str]]) -> list[str]:
    path = [min(waiting)]
    while path[-1] not in path[:-1]:
        path.append(min(need for need in waiting[path[-1]] if need in waiting))
    return path[path.index(path[-1]) :]


def _notes(names: list[str], target: Mapping[str, Wanted], stages: Mapping[str, Stage]) -> list[str]:
    notes = []
    for first, second in itertools.pairwise(names):
        if stages[first] > stages[second]:
            notes.append(f"{second} comes after {first}, on which it depends, though its stage is earlier.")
        elif stages[first] < stages[second] and target[first].priority > target[second].priority:
            notes.append(
                f"priority {target[second].priority} of {second} does not move it before {first}: "
                f"{stages[first].name.lower()} comes before {stages[second].name.lower()}."
            )
    return notes
