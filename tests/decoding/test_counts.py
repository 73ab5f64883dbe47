"""What was done is told as JSON."""

from __future__ import annotations

import json

from inference_pio.decoding.counts import Counts


def test_counts_are_plain_json() -> None:
    counts = Counts(calls=2, new_tokens=9, recorded=1, recording_s=0.12345)
    counts.left["beam search"] += 2
    counts.prompts_left["a row is padding alone"] += 1
    assert json.loads(json.dumps(counts.to_json())) == {
        "calls": 2,
        "new_tokens": 9,
        "recorded": 1,
        "recording_s": 0.123,
        "left_to_the_library": {"beam search": 2},
        "prompts": 0,
        "prompts_left_to_the_library": {"a row is padding alone": 1},
    }
