"""What the manager costs: every call is timed on a small model of the same kind, and the recorded figures are whole."""

from __future__ import annotations

import json

import pytest
from benchmarks.overheads import BARS_MS, RECORD, best, main, measure, shape_of

from benchmarks import overheads


def test_every_call_is_timed_and_the_model_is_left_as_it_was() -> None:
    model = shape_of("qwen3-4b", smoke=True)
    found = measure(model, rounds=2)
    assert {*BARS_MS, "forward, nothing applied"} == set(found)
    assert all(figure["ms"] > 0 for name, figure in found.items() if name in BARS_MS)
    assert "_inference_pio" not in vars(model)


def test_a_missed_bar_is_the_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(overheads, "shape_of", lambda name: None)
    for status_ms, code in ((4.9, 0), (5.1, 1)):
        figures = dict.fromkeys(BARS_MS, best([(1.0, 1.0)])) | {"status": best([(status_ms, 9.0), (6.0, 1.0)])}
        monkeypatch.setattr(overheads, "measure", lambda model, figures=figures: figures)
        assert main([]) == code
        assert f"{status_ms:8.2f} ms,     1.00 ms of the processor, bar 5" in capsys.readouterr().out


def test_what_is_recorded_is_whole() -> None:
    recorded = json.loads(RECORD.read_text())
    assert set(BARS_MS) <= set(recorded["figures"])
