"""The seven numbers of one model on one machine, and what they stand on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from inference_pio.measure.speed import Speed


@dataclass(frozen=True)
class Measurement:
    """Medians and bytes; `details` holds, ready for JSON, their spreads, intervals, repeats, methods and texts.

    `peak_bytes` counts the whole process (on CUDA, all it allocated on the device) while it ran this model;
    `perplexity` is None where no text was given to measure it on.
    """

    decode_tokens_per_s: float
    prefill_tokens_per_s: float
    time_to_first_token_s: float
    weight_bytes: int
    resident_bytes: int
    peak_bytes: int
    perplexity: float | None
    details: Mapping[str, Any] = field(default_factory=dict)

    def with_speed(self, speed: Speed) -> Measurement:
        """The same model with speeds that were measured in another run: in turn with the models it is compared with."""
        medians: dict[str, Any] = {**speed_medians(speed)}
        return replace(self, **medians, details={**self.details, "speed": speed.to_json()})

    def to_json(self) -> dict[str, Any]:
        """One key a field; infinities, which JSON has no numbers for, as words."""
        return {part.name: plain_json(getattr(self, part.name)) for part in fields(self)}


def speed_medians(speed: Speed) -> dict[str, float]:
    return {
        "decode_tokens_per_s": speed.decode_tokens_per_s.median,
        "prefill_tokens_per_s": speed.prefill_tokens_per_s.median,
        "time_to_first_token_s": speed.time_to_first_token_s.median,
    }


def plain_json(value: Any) -> Any:
    """Only what strict JSON knows: tuples become lists, and infinity and NaN their names.

    >>> plain_json({"kl": float("inf"), "interval": (1.0, 2.0)})
    {'kl': 'inf', 'interval': [1.0, 2.0]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
