"""What the manager costs: every call is timed on a small model of the same kind, and the recorded figures are whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from benchmarks.overheads import BARS_MS, RECORD, best, main, measure, shape_of
from torch import nn

from benchmarks import overheads
from inference_pio.manager import ModularOptimizationManager
from inference_pio.undo import module_walk


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


def test_switching_attention_on_walks_the_model_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    model, manager, walks = shape_of("qwen3-4b", smoke=True), ModularOptimizationManager(), [0, 0]
    theirs, ours = nn.Module.named_modules, module_walk._visit

    def walking(module: nn.Module, *given: Any, **named: Any) -> Any:
        walks[0] += module is model
        return theirs(module, *given, **named)

    def visiting(module: nn.Module, path: str, *more: Any) -> None:
        walks[1] += not path
        ours(module, path, *more)

    monkeypatch.setattr(nn.Module, "named_modules", walking)
    monkeypatch.setattr(module_walk, "_visit", visiting)
    manager.apply_optimizations(model, ["flash_attention"])
    manager.remove_optimizations(model)
    assert walks[0] <= 8
    assert walks[1] <= 40
