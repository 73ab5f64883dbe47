"""What a profile promises to gain: each promise is one ratio of a report, and so can be checked."""

from __future__ import annotations

from pydantic import Field

from inference_pio.configuration.plain_data import Document


class PerformanceTargets(Document):
    """Gains over the baseline of a report; what is None is not promised. `targets_missed` checks them.

    - `latency_reduction`, the share of the time to the first token that is saved:
      1 - `time_to_first_token_ratio`, from 0 (no slower) to below 1.
    - `memory_efficiency`, the share of resident bytes (weights, and originals held for the undo) that is saved:
      1 - `resident_bytes_ratio`, from 0 (no more) to below 1.
    - `throughput_improvement`, what decoding gains in tokens per second over the baseline's:
      `decode_speedup` - 1, from 0 (no slower) to 1000; 0.5 is half as many again.

    >>> PerformanceTargets(memory_efficiency=0.3).memory_efficiency
    0.3
    """

    latency_reduction: float | None = Field(
        default=None, ge=0, lt=1, allow_inf_nan=False,
        description="Share of the time to the first token that is saved: 1 - time_to_first_token_ratio of a report.",
    )  # fmt: skip
    memory_efficiency: float | None = Field(
        default=None, ge=0, lt=1, allow_inf_nan=False,
        description="Share of resident bytes that is saved: 1 - resident_bytes_ratio of a report.",
    )  # fmt: skip
    throughput_improvement: float | None = Field(
        default=None, ge=0, le=1000, allow_inf_nan=False,
        description="Gain in decoded tokens per second over the baseline: decode_speedup of a report - 1.",
    )  # fmt: skip
