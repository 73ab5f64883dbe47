"""From a value to its place on an axis, in percent of the axis's length: the page stays as wide as its screen."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

FACTORS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
LEAST_REACH = 2.0
"""A ratio axis reaches this far both ways at least: beside it a change of 1% looks as small as it is."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Linear:
    """Equal steps for equal differences.

    >>> Linear(0.0, 50.0).at(25.0), Linear(0.0, 50.0).at(99.0)
    (50.0, 100.0)
    """

    low: float
    high: float

    def at(self, value: float) -> float:
        return _percent(value - self.low, self.high - self.low)

    def ticks(self, wanted: int = 4) -> list[Tick]:
        """Round values, about so many."""
        step = _round_step((self.high - self.low) / wanted)
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first + 1
        digits = max(0, -math.floor(math.log10(step)))
        return [Tick(self.at(n * step), f"{n * step:.{digits}f}") for n in range(first, first + count)]


@dataclass(frozen=True)
class Factors:
    """Equal steps for equal factors, 1 in the middle: half and double are the same way off.

    >>> Factors(4.0).at(1.0), Factors(4.0).at(2.0), [tick.text for tick in Factors(4.0).ticks()]
    (50.0, 75.0, ['0.5×', '1×', '2×'])
    """

    reach: float

    @classmethod
    def around(cls, ratios: Iterable[float]) -> Factors:
        """An axis that holds all of these ratios; what is 0 or infinite lies at its end."""
        far = [max(ratio, 1 / ratio) for ratio in ratios if 0 < ratio < math.inf]
        return cls(min(max([LEAST_REACH, *far]) * 1.1, FACTORS[-1]))

    def at(self, ratio: float) -> float:
        if ratio <= 0:
            return 0.0
        return _percent(math.log(ratio) + math.log(self.reach), 2 * math.log(self.reach))

    def ticks(self) -> list[Tick]:
        return [Tick(self.at(each), f"{each:g}×") for each in FACTORS if 1 / self.reach < each < self.reach]


def span(values: Iterable[float], margin: float = 0.08) -> Linear:
    """A linear axis over these values with some air at both ends.

    >>> span([1.0, 2.0], margin=0.5)
    Linear(low=0.5, high=2.5)
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    air = (high - low) * margin or abs(high) * margin or 1.0
    return Linear(low - air, high + air)


def from_zero(values: Iterable[float]) -> Linear:
    """A linear axis from 0 to the largest of these values, for bars: their lengths are their values.

    >>> from_zero([3.0, 4.0])
    Linear(low=0.0, high=4.0)
    """
    return Linear(0.0, max([value for value in values if math.isfinite(value)], default=0.0) or 1.0)


def _percent(part: float, whole: float) -> float:
    if math.isnan(part):
        return 0.0
    return round(100 * min(max(part / whole, 0.0), 1.0), 3)


def _round_step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough * (1 - 1e-9))
