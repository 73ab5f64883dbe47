"""Heads that look far show a low coverage: on text that asks for it, and at their worst place."""

from __future__ import annotations

import pytest
import torch

from inference_pio.calibration.head_coverage import (
    MOST_ROWS,
    coverage_by_head,
    least_coverage,
    measured_rows,
    said_twice,
)
from inference_pio.calibration.source import CalibrationSource
from inference_pio.kernels.fixed_pattern import FixedPattern
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny

PATTERN = FixedPattern(64, 64)


def test_one_place_in_ten_that_looks_far_decides() -> None:
    mass = torch.zeros(2, 20, 20)
    mass[:, range(20), range(20)] = 1.0
    for row in (8, 12, 16):
        mass[1, row] = 0.0
        mass[1, row, 3] = 1.0
    near, far = coverage_by_head(mass[:, 4:], torch.eye(20, dtype=torch.bool)[4:]).tolist()
    assert near == 1.0
    assert far < 0.1
    assert coverage_by_head(mass[:, 17:], torch.eye(20, dtype=torch.bool)[17:]).tolist() == [1.0, 1.0]


def test_the_measured_rows_are_spread_over_the_window_and_hold_its_end() -> None:
    for first, last in ((0, 3), (36, 136), (5, 6), (10, 10 + MOST_ROWS)):
        rows = measured_rows(first, last)
        assert rows == sorted(set(rows))
        assert len(rows) == min(MOST_ROWS, last - first)
        assert (rows[-1], rows[0] - first < 6) == (last - 1, True)


def test_only_plain_tokens_are_said_twice() -> None:
    ids = torch.arange(7)[None]
    twice = said_twice({"input_ids": ids})
    assert twice is not None
    assert twice["input_ids"].tolist() == [[0, 1, 2, 0, 1, 2]]
    assert said_twice({"input_ids": ids, "pixel_values": torch.ones(1)}) is None
    assert said_twice({"inputs_embeds": torch.ones(1)}) is None


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "glm4_moe_lite"])
def test_every_head_of_every_text_layer_is_measured_and_the_model_stays_as_it_was(name: str) -> None:
    model = tiny.build(name)
    before = fingerprint(model)
    ids = torch.randint(1, 120, (1, 512), generator=torch.Generator().manual_seed(0))
    source = CalibrationSource("a test", ({"input_ids": ids},))
    told: list[float] = []
    found = least_coverage(model, source, PATTERN.kept, 4, lambda phase, share: told.append(share))
    assert before.differences(fingerprint(model)) == []
    assert len(found) == model.config.num_hidden_layers
    assert all(len(shares) == 4 and all(0 < share < 1 for share in shares) for shares in found.values())
    assert told == [0.5, 1.0]
    everything = least_coverage(model, source, FixedPattern(0, 512).kept, 4)
    assert all(min(shares) > 0.999 for shares in everything.values())
