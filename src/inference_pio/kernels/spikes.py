"""Signed neurons that integrate and fire: how often one fires for what it is given, and the train of its spikes.

A potential is counted in thresholds, on a grid of 1 / GRID, so that all arithmetic on it is exact in float64: whatever
order it is done in, the bits are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

RATE, RADIX = "rate", "radix"
GRID = 2.0**16


@dataclass(frozen=True)
class Code:
    """How a number of spikes, from -levels to levels, is told in time: `steps` steps of a coding.

    In `rate` every spike counts one. In `radix` a spike of step t of T counts 2 ** (T - 1 - t). With `second`, each
    neuron has another one beside it for what lies beyond: its threshold is 2 levels + 1 times as high, it is given
    whole multiples of that, the first one the rest, and both fire in the same steps.

    >>> Code("rate", 15).steps, Code("radix", 15).steps, Code("radix", 16).steps
    (15, 4, 5)
    >>> Code("radix", 15).reach, Code("radix", 15, second=True).reach
    (15, 480)
    """

    coding: str
    levels: int
    time_steps: int | None = None
    second: bool = False

    @property
    def least_steps(self) -> int:
        """Without so many the highest level could not be told."""
        return self.levels if self.coding == RATE else self.levels.bit_length()

    @property
    def steps(self) -> int:
        return self.time_steps or self.least_steps

    @property
    def weights(self) -> list[float]:
        """What a spike counts at each step."""
        if self.coding == RATE:
            return [1.0] * self.steps
        return [2.0**place for place in reversed(range(self.steps))]

    @property
    def base(self) -> int:
        """What a spike of a second neuron counts for one of a first."""
        return 2 * self.levels + 1

    @property
    def reach(self) -> int:
        """The largest number that can be told."""
        return self.levels + self.base * self.levels if self.second else self.levels

    @property
    def first(self) -> Code:
        """The same without second neurons."""
        return replace(self, second=False)


def naive_train(potential: float, code: Code) -> list[int]:
    """One first neuron, step by step: it fires up while it holds a threshold or more, down while less than none.

    >>> naive_train(5.5, Code("radix", 7)), naive_train(-1.25, Code("rate", 3))
    ([1, 0, 1], [-1, -1, 0])
    """
    fired, spikes = 0, []
    for weight in map(int, code.weights):
        up = potential >= weight and fired + weight <= code.levels
        down = not up and -potential > weight - 1 and fired - weight >= -code.levels
        spikes.append(up - down)
        potential, fired = potential - weight * (up - down), fired + weight * (up - down)
    return spikes


def naive_split(potential: float, code: Code) -> tuple[float, int]:
    """What a first neuron is given of a potential, and a second one.

    >>> naive_split(5.5, Code("radix", 3, second=True)), naive_split(-4.0, Code("radix", 3, second=True))
    ((-1.5, 1), (3.0, -1))
    """
    if not code.second:
        return potential, 0
    multiples = max(-code.levels, min(code.levels, math.floor((potential + code.levels) / code.base)))
    return potential - code.base * multiples, multiples


def potentials(x: Tensor, threshold: Tensor, code: Code) -> Tensor:
    """What neurons hold that were given `x` and half a threshold: no more than they can tell. Float64, in thresholds.

    >>> potentials(torch.tensor([0.75, -9.0, 9.0]), torch.tensor(0.5), Code("rate", 3)).tolist()
    [2.0, -3.0, 3.9999847412109375]
    """
    held = (x.double() / threshold.double()).add_(0.5).mul_(GRID).floor_().div_(GRID)
    return held.clamp_(-code.reach, code.reach + 1 - 1 / GRID)


def counts(held: Tensor) -> Tensor:
    """The sum of what the spikes of such neurons count, known at once.

    >>> counts(torch.tensor([2.0, -2.5])).tolist()
    [2.0, -3.0]
    """
    return held.floor()


def trains(held: Tensor, code: Code) -> Iterator[tuple[Tensor, float]]:
    """The spikes of such neurons (-1, 0 or 1) step by step, each with what it counts; not a number stays none.

    >>> [spikes.tolist() for spikes, _ in trains(torch.tensor([5.5, -1.25]), Code("radix", 7))]
    [[1.0, 0.0], [0.0, -1.0], [1.0, 0.0]]
    """
    for given, base in split(held, code):
        left = given
        for step, weight in enumerate(code.weights):
            spikes = (left >= weight).to(held.dtype) - (left <= 1 - weight - 1 / GRID).to(held.dtype)
            if step == 0:
                spikes = spikes + (left - left)
            left = left - spikes * weight
            yield spikes, weight * base


def spikes_in(count: Tensor, code: Code) -> Tensor:
    """How many spikes tell a count.

    >>> spikes_in(torch.tensor([5.0, -3.0]), Code("radix", 7)).tolist()
    [2.0, 2.0]
    """
    found = torch.zeros_like(count)
    for given, _ in split(count, code):
        left = given.abs()
        if code.coding == RATE:
            found = found + left
            continue
        for weight in code.weights:
            fires = (left >= weight).to(left.dtype)
            left, found = left - fires * weight, found + fires
    return found


def split(held: Tensor, code: Code) -> list[tuple[Tensor, int]]:
    """What first neurons are given, and second ones, each with what a spike of theirs counts.

    >>> [(given.tolist(), base) for given, base in split(torch.tensor([5.5]), Code("radix", 3, second=True))]
    [([-1.5], 1), ([1.0], 7)]
    """
    if not code.second:
        return [(held, 1)]
    multiples = ((held + code.levels) / code.base).floor()
    return [(held - multiples * code.base, 1), (multiples, code.base)]
