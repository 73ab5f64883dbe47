"""Loading is timed only where the model says the same, to the bit; memory and reads are those of the loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.arms.loading import ARMS
from benchmarks.load_job import LoadJob, own_memory
from benchmarks.suites import SUITES
from benchmarks.tables import table

from benchmarks import load_job

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not Path("/proc/self/io").is_file(), reason="reads are told by /proc")


def job(arm: str) -> LoadJob:
    return LoadJob(SUITES["load-qwen3-4b"].smoked(), arm, CPU, smoke=True)


def test_a_model_within_a_budget_is_right_and_tells_what_was_planned() -> None:
    one = job("pio-load-budget")
    said = one.set_up()
    answer = one.round()
    one.close()
    assert said["right"]
    assert said["bytes"]["planned"] < 0.8 * said["bytes"]["checkpoint"]
    assert answer["values"]["load"] == pytest.approx(said["bytes"]["checkpoint"] / answer["seconds"] / 1e9)
    assert not one.folder.exists()


def test_a_model_that_says_something_else_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path, device: torch.device) -> Any:
        model: Any = ARMS["pio-load"].load(folder, device)
        model.model.norm.weight.data[0] += 1
        return model

    monkeypatch.setitem(load_job.ARMS, "broken", load_job.ARMS["pio-load"].__class__("broken", broken))
    one = job("broken")
    said = one.set_up()
    one.close()
    assert not said["right"]
    assert "logits" in said["reason"]


def test_own_memory_sees_what_was_there_for_a_moment() -> None:
    with own_memory() as found:
        block = torch.ones(64 * 2**20, dtype=torch.uint8)
        for _ in range(20):
            block.add_(1)
        del block
    assert found["peak"] - found["before"] > 50 * 2**20


def test_the_table_has_seconds_and_bytes() -> None:
    row = {"median": 2.0, "low": 1.0, "high": 3.0, "unit": "s", "samples": [2.0]}
    load = row | {"unit": "GB/s", "rate": {"value": 2.0, "unit": "GB/s"}, "share": {"of": "disk read", "value": 0.9}}
    arm = {
        "label": "ours", "status": "ok", "reason": "", "cases": {"seconds": row, "load": load},
        "bytes": {"weights": 3e9, "peak": 4e9},
    }  # fmt: skip
    versions = {"torch": "2", "transformers": "5"}
    found = {
        "title": "Loading", "kind": "load", "baseline": "pio-load", "device": "a GPU", "date": "2026-11-26",
        "commit": None, "machine": {"versions": versions, "cpu": "one"}, "arms": {"pio-load": arm},
    }  # fmt: skip
    assert "| **ours** | 2.0 (1.0-3.0) | 1.00x | 2.00 | 90% | 3.0 GB | 4.0 GB |" in table(found)
