from __future__ import annotations

import copy

from inference_pio.anatomy.pattern_counts import PatternCounts


def test_calls_are_counted_by_phase_backend_and_reason() -> None:
    counts = PatternCounts()
    assert counts.to_json() == {"sparse_calls": {}, "backends": {}, "dense_calls": {}, "density": None}
    counts.served("prefill", "triton", kept=10, of=40)
    counts.served("decode", "gathered", kept=5, of=10)
    counts.left("short rows")
    counts.left("short rows")
    twin = copy.deepcopy(counts)
    twin.left("dropout")
    assert counts.to_json() == {
        "sparse_calls": {"prefill": 1, "decode": 1}, "backends": {"triton": 1, "gathered": 1},
        "dense_calls": {"short rows": 2}, "density": 0.3,
    }  # fmt: skip
