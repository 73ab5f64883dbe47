"""What each step brought: the model measured after every one of them, each beside the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from inference_pio.measure.comparison import Comparison
from inference_pio.measure.measurement import Measurement, plain_json
from inference_pio.measure.report_table import change_in_words


@dataclass(frozen=True)
class AfterStep:
    """The model with all steps up to this one; the plain model comes first, and `comparison` is against it."""

    name: str
    measured: Measurement
    comparison: Comparison | None = None

    def to_json(self) -> dict[str, Any]:
        compared = self.comparison.to_json() if self.comparison else None
        return {"name": self.name, "measured": self.measured.to_json(), "comparison": plain_json(compared)}


def step_lines(steps: Sequence[AfterStep]) -> list[str]:
    """A line a step: its speed, memory and divergence, and the change from the step before."""
    return [_line(step, previous.measured) for previous, step in pairwise(steps)]


def _line(step: AfterStep, previous: Measurement) -> str:
    now = step.measured
    decode = change_in_words(now.decode_tokens_per_s / previous.decode_tokens_per_s, ("faster", "slower"))
    prefill = change_in_words(now.prefill_tokens_per_s / previous.prefill_tokens_per_s, ("faster", "slower"))
    size = (now.resident_bytes - previous.resident_bytes) / 1e6
    kl = step.comparison.kl_nats_per_token if step.comparison else None
    quality = f"; KL from the original {kl:.2g} nats/token" if kl is not None else ""
    return (
        f"step {step.name}: decode {now.decode_tokens_per_s:.1f} tokens/s ({decode}), "
        f"prefill {now.prefill_tokens_per_s:.0f} tokens/s ({prefill}), "
        f"resident {now.resident_bytes / 1e6:,.1f} MB ({size:+,.1f} MB){quality}"
    )
