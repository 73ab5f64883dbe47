"""A profile is made on windows longer than the pattern, or read as a receipt holds it; anything else is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inference_pio.calibration.pattern_profile import make_profile, read_profile
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.fixed_pattern import FixedPattern
from tests import tiny

PATTERN = FixedPattern(64, 64)
IDS = [[token % 100 + 1 for token in range(512)]]
MADE = {"sinks": 64, "window": 64, "stride": 0, "coverage": {"a": [0.5, 1.0]}}


def test_a_profile_says_what_it_was_made_on_and_comes_out_the_same_again() -> None:
    model = tiny.build("llama")
    profile = make_profile(model, PATTERN, IDS, 512)
    assert (profile.source["windows"], profile.source["window"]) == (1, 512)
    assert len(profile.source["sha256"]) == 64
    assert list(profile.coverage) == [f"model.layers.{layer}.self_attn" for layer in range(3)]
    assert make_profile(model, PATTERN, IDS, 512) == profile


@pytest.mark.parametrize(
    ("window", "calibration", "told"),
    [
        (512, IDS, "this model takes at most 512"),
        (64, [IDS[0][:300]], "a window of the calibration text is 300"),
        (64, [[1, 2], [3]], "rows of one length"),
        (64, [[500] * 512], "another model's tokenizer"),
    ],
)
def test_windows_that_show_nothing_are_refused_with_the_way_out(window: int, calibration: Any, told: str) -> None:
    with pytest.raises(InvalidSetting, match=told):
        make_profile(tiny.build("llama"), FixedPattern(64, window), calibration, 512)


def test_a_profile_is_read_from_a_mapping_or_a_file(tmp_path: Path) -> None:
    assert read_profile(MADE, PATTERN).coverage == {"a": [0.5, 1.0]}
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(MADE | {"calibration": {"name": "mine"}}))
    assert read_profile(str(path), PATTERN).source == {"name": "mine"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "needs `coverage`"),
        (MADE | {"coverage": {"a": []}}, "needs `coverage`"),
        (MADE | {"coverage": {"a": ["x"]}}, "needs `coverage`"),
        (MADE | {"window": 128}, "was made for"),
        ("nowhere.json", "cannot be read"),
    ],
)
def test_what_is_no_profile_or_one_of_another_pattern_is_refused(given: Any, told: str) -> None:
    with pytest.raises(InvalidSetting, match=told):
        read_profile(given, PATTERN)
