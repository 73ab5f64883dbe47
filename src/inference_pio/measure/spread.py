"""A quantity measured several times: its median, and how far the samples lie apart."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Samples of one quantity in the order they were taken.

    >>> Spread((3.0, 1.0, 2.0)).median, Spread((3.0, 1.0, 2.0)).low
    (2.0, 1.0)
    """

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        return min(self.samples)

    @property
    def high(self) -> float:
        return max(self.samples)

    def to_json(self) -> dict[str, Any]:
        return {"median": self.median, "low": self.low, "high": self.high, "samples": list(self.samples)}
