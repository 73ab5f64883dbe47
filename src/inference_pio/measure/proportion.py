"""A share of yes among yes and no, with its 95% interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

from inference_pio.measure.interval import Interval

Z_95 = 1.959964


@dataclass(frozen=True)
class Proportion:
    """`hits` of `count`. The interval is Wilson's (1927), which holds near 0 and 1 where the usual one collapses.

    >>> Proportion(8, 8).share, round(Proportion(8, 8).interval[0], 3)
    (1.0, 0.676)
    """

    hits: int
    count: int

    @property
    def share(self) -> float:
        return self.hits / self.count if self.count else math.nan

    @property
    def interval(self) -> Interval:
        if not self.count:
            return 0.0, 1.0
        spread = Z_95**2 / self.count
        middle = (self.share + spread / 2) / (1 + spread)
        reach = Z_95 * math.sqrt(self.share * (1 - self.share) / self.count + spread / (4 * self.count)) / (1 + spread)
        return max(0.0, middle - reach), min(1.0, middle + reach)

    def __add__(self, other: Proportion) -> Proportion:
        return Proportion(self.hits + other.hits, self.count + other.count)
