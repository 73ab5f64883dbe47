"""What is measured of a model, and how each of it reads: its unit, its better direction, its words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from inference_pio.measure.html.words import figure, number, size

Pair = tuple[float, float]


@dataclass(frozen=True)
class Quantity:
    """One quantity of a measurement; `scale` brings it into `unit`, `words` are those for more and for less."""

    key: str
    ratio: str
    title: str
    unit: str
    higher_is_better: bool
    words: tuple[str, str]
    form: Callable[[float], str] = figure
    scale: float = 1.0
    ratio_digits: int = 2

    @property
    def direction(self) -> str:
        return f"{'higher' if self.higher_is_better else 'lower'} is better"

    def value(self, measured: Mapping[str, Any]) -> float | None:
        found = number(measured.get(self.key))
        return None if found is None else found * self.scale

    def text(self, value: float) -> str:
        return f"{self.form(value)} {self.unit}".strip()

    def samples(self, measured: Mapping[str, Any]) -> list[float]:
        """The rounds that it was timed in, where it was."""
        spread = _within(measured, "speed", self.key)
        return [one * self.scale for one in map(number, spread.get("samples", ())) if one is not None]

    def interval(self, measured: Mapping[str, Any]) -> Pair | None:
        """How far it is sure: the rounds of a speed, the 95% interval of the perplexity."""
        if samples := self.samples(measured):
            return min(samples), max(samples)
        return pair(_within(measured, "quality").get("perplexity_interval")) if self.key == "perplexity" else None


def pair(value: Any) -> Pair | None:
    """The two ends of an interval in a report's JSON."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (low, high)


def _within(measured: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    found: Any = measured.get("details")
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


_SPEED, _SIZE = ("faster", "slower"), ("more", "less")
DECODE = Quantity("decode_tokens_per_s", "decode_speedup", "Decode", "tokens/s", True, _SPEED)
PREFILL = Quantity("prefill_tokens_per_s", "prefill_ratio", "Prefill", "tokens/s", True, _SPEED)
FIRST = Quantity(
    "time_to_first_token_s", "time_to_first_token_ratio", "Time to first token", "ms", False, ("longer", "shorter"),
    scale=1e3,
)  # fmt: skip
WEIGHTS = Quantity("weight_bytes", "weight_bytes_ratio", "Weights", "", False, _SIZE, size)
RESIDENT = Quantity("resident_bytes", "resident_bytes_ratio", "Memory of the model", "", False, _SIZE, size)
PEAK = Quantity("peak_bytes", "peak_bytes_ratio", "Peak of the process", "", False, _SIZE, size)
PERPLEXITY = Quantity(
    "perplexity", "perplexity_ratio", "Perplexity", "", False, ("higher", "lower"), lambda value: f"{value:.3f}",
    ratio_digits=4,
)  # fmt: skip
SPEEDS = (DECODE, PREFILL, FIRST)
ALL = (*SPEEDS, WEIGHTS, RESIDENT, PEAK, PERPLEXITY)
