"""Which of a profile's performance targets a comparison does not reach."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from inference_pio.configuration.profiles import GlobalOptimizationProfile

Gain = Callable[[float], float]
CHECKED: dict[str, tuple[str, Gain]] = {
    "latency_reduction": ("time_to_first_token_ratio", lambda ratio: 1 - ratio),
    "memory_efficiency": ("resident_bytes_ratio", lambda ratio: 1 - ratio),
    "throughput_improvement": ("decode_speedup", lambda ratio: ratio - 1),
}
"""For each target the key of a comparison, and how its ratio becomes the gain that the target speaks of."""


@dataclass(frozen=True)
class MissedTarget:
    """A target that is not reached; `reached` is a gain as `wanted` is, None where it was not measured."""

    name: str
    wanted: float
    reached: float | None
    comparison_key: str
    ratio: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        wanted = f"{self.name}: {self.wanted:.1%} was wanted, and "
        if self.reached is None:
            return f"{wanted}{self.comparison_key} was not measured"
        return f"{wanted}{self.reached:.1%} was reached ({self.comparison_key} {self.ratio:.3f})"


def targets_missed(profile: GlobalOptimizationProfile, comparison: Mapping[str, Any] | object) -> list[MissedTarget]:
    """The targets that a report's comparison (the object, or its JSON) does not reach; empty where all are.

    The medians decide, not the intervals around them. A target whose quantity was not measured is missed.

    >>> profile = GlobalOptimizationProfile(
    ...     name="mine", default_settings={"a": {}}, performance_targets={"throughput_improvement": 0.5})
    >>> print(*targets_missed(profile, {"decode_speedup": 1.2}))
    throughput_improvement: 50.0% was wanted, and 20.0% was reached (decode_speedup 1.200)
    """
    missed = []
    for name, (key, gain) in CHECKED.items():
        wanted = getattr(profile.performance_targets, name)
        if wanted is None:
            continue
        ratio = _ratio(comparison, key)
        reached = None if ratio is None else gain(ratio)
        if reached is None or reached < wanted - 1e-9:  # 1 - 0.7 is a hair below 0.3
            missed.append(MissedTarget(name, wanted, reached, key, ratio))
    return missed


def _ratio(comparison: Mapping[str, Any] | object, key: str) -> float | None:
    found = comparison.get(key) if isinstance(comparison, Mapping) else getattr(comparison, key, None)
    ratio = None if found is None else float(found)  # JSON holds infinities as words
    return None if ratio is None or math.isnan(ratio) else ratio
