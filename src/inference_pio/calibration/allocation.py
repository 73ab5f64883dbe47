"""Which form each layer is to have, so that all of them fit into so many bytes and lose as little as they can."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

KEPT = "kept"


@dataclass(frozen=True)
class Choice:
    """A form that a layer may have: a format, its group (0 where it has none), its bytes, and what is lost by it.

    >>> str(Choice("int4", 32, 100)), str(Choice("int8", 0, 160)), Choice("int8", 0, 160).losing(0.5).loss
    ('int4, 32', 'int8', 0.5)
    """

    format: str
    group: int
    nbytes: int
    loss: float = 0.0

    def __str__(self) -> str:
        return f"{self.format}, {self.group}" if self.group else self.format

    def losing(self, loss: float) -> Choice:
        return replace(self, loss=loss)


Choices = Mapping[str, Sequence[Choice]]
"""By path, the forms that a layer may have, the one of the fewest bytes first."""


def least_bytes(choices: Choices) -> int:
    """What all layers take at least."""
    return sum(of_layer[0].nbytes for of_layer in choices.values())


def allocate(choices: Choices, budget_bytes: int) -> dict[str, Choice]:
    """A form for each layer, at most `budget_bytes` in all: from the least upwards, the most gained for a byte first.

    Not the best of all fillings, but within what one layer's step gains of it. Where even the least is more than the
    budget, the least.

    >>> small, large = Choice("int4", 128, 10, loss=4.0), Choice("int8", 0, 18, loss=0.0)
    >>> chosen = allocate({"one": [small, large], "other": [small.losing(9.0), large]}, 30)
    >>> [str(choice) for choice in chosen.values()]
    ['int4, 128', 'int8']
    """
    paths = list(choices)
    chosen = {path: choices[path][0] for path in paths}
    left = budget_bytes - least_bytes(choices)
    ready: list[tuple[float, int, Choice]] = []

    def offer(number: int) -> None:
        """A layer's best next step within what is left; never more is left later."""
        path = paths[number]
        steps = [(_gain_per_byte(chosen[path], to), to) for to in choices[path]]
        fitting = [step for step in steps if step[0] > 0 and step[1].nbytes - chosen[path].nbytes <= left]
        if fitting:
            gain, to = max(fitting, key=lambda step: step[0])
            heapq.heappush(ready, (-gain, number, to))

    for number in range(len(paths)):
        offer(number)
    while ready:
        _, number, to = heapq.heappop(ready)
        extra = to.nbytes - chosen[paths[number]].nbytes
        if extra <= left:
            chosen[paths[number]], left = to, left - extra
        offer(number)
    return chosen


def alike(choices: Choices, format_name: str, group: int = 0) -> dict[str, Choice]:
    """Every layer in one format, its group the largest that it has up to `group`; a layer without it as near as can be.

    >>> four, eight = Choice("int4", 32, 10), Choice("int8", 0, 18)
    >>> [str(one) for one in alike({"one": [four, eight], "other": [eight]}, "int4", 128).values()]
    ['int4, 32', 'int8']
    """
    chosen = {}
    for path, of_layer in choices.items():
        named = [one for one in of_layer if one.format == format_name and one.group <= group]
        above = [one for one in of_layer if one.format != format_name]
        chosen[path] = max(named, key=lambda one: one.group) if named else (above or list(of_layer))[0]
    return chosen


def bytes_of(chosen: Mapping[str, Choice]) -> int:
    return sum(choice.nbytes for choice in chosen.values())


def _gain_per_byte(now: Choice, to: Choice) -> float:
    extra = to.nbytes - now.nbytes
    return (now.loss - to.loss) / extra if extra > 0 else 0.0
