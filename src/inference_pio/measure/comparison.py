"""What an optimized model gained and lost beside its baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from inference_pio.measure.interval import Interval
from inference_pio.measure.measurement import Measurement, plain_json
from inference_pio.measure.quality import Quality


@dataclass(frozen=True)
class Comparison:
    """Ratios are optimized / baseline: a speedup below 1 is a slowdown, a bytes ratio below 1 is a saving.

    The KL divergence and the agreement are those against the recorded original; None where quality was not measured.
    """

    kl_nats_per_token: float | None
    top1_agreement: float | None
    decode_speedup: float
    weight_bytes_ratio: float
    perplexity_ratio: float | None
    prefill_ratio: float
    time_to_first_token_ratio: float
    resident_bytes_ratio: float
    peak_bytes_ratio: float
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    greedy_agreement: float | None = None
    """The share of the original's greedy tokens before the first other one; see `GreedyAgreement`."""

    def to_json(self) -> dict[str, Any]:
        return {part.name: plain_json(getattr(self, part.name)) for part in fields(self)}


def compare_measurements(baseline: Measurement, optimized: Measurement, quality: Quality | None = None) -> Comparison:
    """Divide `optimized` by `baseline`; `quality` tells how far the optimized model is from the recorded original.

    The intervals of the speed ratios reach from the lowest to the highest round; where both were timed in turn they are
    those of round against round.
    """
    return Comparison(
        kl_nats_per_token=quality.kl_nats_per_token if quality else None,
        top1_agreement=quality.top1_agreement if quality else None,
        decode_speedup=optimized.decode_tokens_per_s / baseline.decode_tokens_per_s,
        weight_bytes_ratio=_ratio(optimized.weight_bytes, baseline.weight_bytes),
        perplexity_ratio=_perplexity_ratio(baseline, optimized),
        prefill_ratio=optimized.prefill_tokens_per_s / baseline.prefill_tokens_per_s,
        time_to_first_token_ratio=optimized.time_to_first_token_s / baseline.time_to_first_token_s,
        resident_bytes_ratio=_ratio(optimized.resident_bytes, baseline.resident_bytes),
        peak_bytes_ratio=_ratio(optimized.peak_bytes, baseline.peak_bytes),
        greedy_agreement=quality.greedy.agreed if quality and quality.greedy else None,
        intervals={**_speed_intervals(baseline, optimized), **_quality_intervals(baseline, quality)},
    )


def _ratio(above: int, below: int) -> float:
    """Both may be 0: a model whose every weight is elsewhere."""
    return above / below if below else (float("inf") if above else 1.0)


def _perplexity_ratio(baseline: Measurement, optimized: Measurement) -> float | None:
    if baseline.perplexity is None or optimized.perplexity is None:
        return None
    return optimized.perplexity / baseline.perplexity


def _speed_intervals(baseline: Measurement, optimized: Measurement) -> dict[str, Interval]:
    named = {
        "decode_speedup": "decode_tokens_per_s",
        "prefill_ratio": "prefill_tokens_per_s",
        "time_to_first_token_ratio": "time_to_first_token_s",
    }
    return {
        name: _speed_interval(baseline, optimized, quantity)
        for name, quantity in named.items()
        if "speed" in baseline.details and "speed" in optimized.details
    }


def _speed_interval(baseline: Measurement, optimized: Measurement, quantity: str) -> Interval:
    below = baseline.details["speed"][quantity]["samples"]
    above = optimized.details["speed"][quantity]["samples"]
    if _timed_in_turn(baseline, optimized):
        ratios = [high / low for high, low in zip(above, below, strict=True)]
    else:
        ratios = [min(above) / max(below), max(above) / min(below)]
    point = getattr(optimized, quantity) / getattr(baseline, quantity)
    return min(*ratios, point), max(*ratios, point)


def _timed_in_turn(baseline: Measurement, optimized: Measurement) -> bool:
    """One run gives both the same `run`, a token drawn anew for each."""
    run = baseline.details["speed"]["run"]
    return run is not None and run == optimized.details["speed"]["run"]


def _quality_intervals(baseline: Measurement, quality: Quality | None) -> dict[str, Interval]:
    if quality is None:
        return {}
    intervals = {"kl_nats_per_token": quality.kl_interval, "top1_agreement": quality.top1_interval}
    if quality.greedy:
        intervals["greedy_agreement"] = quality.greedy.interval
    # the paired interval holds where the baseline is the very model the reference was recorded from
    if baseline.perplexity == quality.reference_perplexity:
        intervals["perplexity_ratio"] = quality.perplexity_ratio_interval
    return intervals
