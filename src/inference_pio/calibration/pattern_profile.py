"""What is known of a model's heads under a pattern: made by running it, or given as it was made before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from inference_pio.calibration.head_coverage import least_coverage
from inference_pio.calibration.source import calibration_source, token_windows
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.fixed_pattern import KEY_BLOCK, FixedPattern
from inference_pio.measure.target import max_positions

SPANS = 4
"""A window of the profile is so many times what a query sees, where the model takes as much."""
LEAST = 8192
"""Tokens of a window, at the least, where the model takes as many: heads that seem to look near in windows of 3072 lost
single tokens at 8192."""
ROWS = 4
"""Blocks of queries, at the least, that must stand beyond what the pattern keeps whole."""


@dataclass(frozen=True)
class PatternProfile:
    """The coverage of each query head by layer, and where it comes from."""

    coverage: Mapping[str, list[float]]
    source: Mapping[str, Any]


def tokens_needed(pattern: FixedPattern) -> int:
    """The shortest window that shows what heads lose under a pattern."""
    return pattern.whole_until + ROWS * KEY_BLOCK


def make_profile(model: nn.Module, pattern: FixedPattern, calibration: Any, tokens: int) -> PatternProfile:
    """Run the model over windows that are longer than the pattern. Raises InvalidSetting where they cannot be had."""
    wanted = max(LEAST, SPANS * pattern.whole_until)
    window = min(wanted, max_positions(model) or wanted)
    _check_length(window, pattern, "this model takes at most")
    source = calibration_source(model, token_windows(calibration), tokens=tokens, window=window)
    length = min(batch["input_ids"].shape[-1] for batch in source.batches)
    _check_length(length, pattern, "a window of the calibration text is")
    coverage = least_coverage(model, source, pattern.kept, pattern.whole_until // KEY_BLOCK)
    told = {"name": source.name, "windows": len(source.batches), "window": length, "sha256": source.digest}
    return PatternProfile(coverage, told)


def read_profile(given: Mapping[str, Any] | str, pattern: FixedPattern) -> PatternProfile:
    """A profile as a receipt's decision holds it, or a JSON file of one.

    Raises InvalidSetting for what is none, or is of another pattern.
    """
    found = _read_json(given) if isinstance(given, str) else given
    coverage = found.get("coverage") if isinstance(found, Mapping) else None
    if not isinstance(coverage, Mapping) or not all(map(_is_shares, coverage.values())):
        raise InvalidSetting(
            "a profile needs `coverage`: the share of attention of every head, by the path of its layer, as the "
            "decision in a receipt of this optimization holds it."
        )
    made_for = {name: found.get(name) for name in ("sinks", "window", "stride")}
    wanted = {"sinks": pattern.sinks, "window": pattern.window, "stride": pattern.stride}
    if made_for != wanted:
        raise InvalidSetting(f"this profile was made for {made_for}, and {wanted} is asked for: make a new one.")
    source = found.get("calibration")
    return PatternProfile(coverage, source if isinstance(source, Mapping) else {"name": "a profile of the user"})


def _check_length(length: int, pattern: FixedPattern, whose: str) -> None:
    needed = tokens_needed(pattern)
    if length < needed:
        raise InvalidSetting(
            f"what heads lose under a window of {pattern.window} shows in text of {needed} tokens or more, and {whose} "
            f"{length}: choose a smaller window, give longer texts as calibration, or a profile made before."
        )


def _is_shares(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, int | float) for one in value)


def _read_json(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidSetting(f"the profile {path} cannot be read: {error}") from error
