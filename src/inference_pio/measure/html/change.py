"""A ratio in words: a gain, a loss or the same, and whether that is sure; a loss reads as plainly as a gain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference_pio.measure.html.quantities import Pair, Quantity, pair
from inference_pio.measure.html.words import number, times
from inference_pio.measure.report_table import change_in_words


@dataclass(frozen=True)
class Change:
    """How one quantity of an optimized model stands to the baseline's; `kind` is gain, loss or same."""

    title: str
    ratio: float
    interval: Pair | None
    text: str
    kind: str
    digits: int = 2

    @property
    def times(self) -> str:
        return times(self.ratio, self.digits)

    @property
    def range(self) -> str:
        """The interval in words, or nothing."""
        if self.interval is None:
            return ""
        low, high = self.interval
        return f"{low:.{self.digits}f}–{times(high, self.digits)}"

    @property
    def sure(self) -> bool:
        """Whether the interval leaves 1 out: a change that it holds may be none."""
        return self.interval is None or not self.interval[0] <= 1 <= self.interval[1]


def change_of(quantity: Quantity, comparison: Mapping[str, Any]) -> Change | None:
    """The change that a report's JSON tells of a quantity, or None where it was not compared."""
    ratio = number(comparison.get(quantity.ratio))
    if ratio is None:
        return None
    text = change_in_words(ratio, quantity.words, quantity.ratio_digits)
    interval = pair((comparison.get("intervals") or {}).get(quantity.ratio))
    return Change(quantity.title, ratio, interval, text, _kind(ratio, text, quantity), quantity.ratio_digits)


def _kind(ratio: float, text: str, quantity: Quantity) -> str:
    if text == "the same":
        return "same"
    return "gain" if (ratio > 1) == quantity.higher_is_better else "loss"
