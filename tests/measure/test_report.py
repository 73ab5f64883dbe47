from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from inference_pio.errors import StorageError
from inference_pio.measure.comparison import compare_measurements
from inference_pio.measure.machine import describe_machine
from inference_pio.measure.report import Report
from tests.measure.test_comparison import QUALITY, timed
from tests.measure.test_measurement import KEYS, measurement

DOCUMENTED = ["model", "profile", "plan", "receipts", "baseline", "optimized", "comparison"]


def report(**changes: Any) -> Report:
    baseline, optimized = timed((10.0, 20.0, 30.0), "one"), timed((30.0, 40.0, 50.0), "one")
    whole: dict[str, Any] = {
        "model": "tiny",
        "profile": "balanced",
        "plan": {"steps": ["tensor_compression"]},
        "receipts": [{"name": "tensor_compression", "loss": float("inf")}],
        "baseline": baseline,
        "optimized": optimized,
        "comparison": compare_measurements(baseline, optimized, QUALITY),
        "machine": describe_machine(),
        "notes": ["4-bit weights to begin with [really]"],
        "shown_beside": {"plain float32": measurement()},
        "baseline_name": "plain bfloat16",
        "optimized_name": "balanced",
    }
    return Report(**{**whole, **changes})


def printed(shown: Report) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(shown.to_table())
    return captured.get()


def test_the_json_has_the_documented_keys_first_and_is_strict():
    found = json.loads(json.dumps(report().to_json(), allow_nan=False))
    assert list(found)[:7] == DOCUMENTED
    for column in (found["baseline"], found["optimized"]):
        assert list(column) == [*KEYS, "details"]
    assert set(found["comparison"]) >= {
        "kl_nats_per_token",
        "top1_agreement",
        "decode_speedup",
        "weight_bytes_ratio",
        "perplexity_ratio",
    }
    assert found["receipts"] == [{"name": "tensor_compression", "loss": "inf"}]
    assert found["shown_beside"][0]["name"] == "plain float32"
    assert found["shown_beside"][0]["weight_bytes"] == 1000


def test_a_report_without_measurements_has_the_same_keys():
    found = Report("tiny").to_json()
    assert list(found) == list(report().to_json())
    assert (found["baseline"], found["optimized"], found["comparison"]) == (None, None, None)
    assert "tiny" in printed(Report("tiny"))


def test_it_is_saved_whole(tmp_path):
    path = tmp_path / "report.json"
    report().save_json(path)
    assert json.loads(path.read_text()) == report().to_json()
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_told_and_left_as_it_was(tmp_path):
    (tmp_path / "file").write_text("theirs")
    with pytest.raises(StorageError):
        report().save_json(Path(tmp_path / "file" / "report.json"))
    assert (tmp_path / "file").read_text() == "theirs"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_table_names_the_machine_and_the_notes_below():
    text = printed(report())
    assert "tiny, profile balanced" in text
    assert "4-bit weights to begin with [really]" in text
    assert describe_machine().cpu in text
    first, second, third = (text.index(name) for name in ("plain float32", "plain bfloat16", "ratio"))
    assert first < second < third


def test_a_shared_machine_is_told_below_the_table():
    quiet, busy = timed((10.0, 10.0)), timed((10.0, 10.0))
    busy.details["speed"]["other_cores_busy"] = 1.25
    text = printed(report(baseline=quiet, optimized=busy, comparison=None))
    assert "balanced was timed while others kept 1.2 cores busy" in text
    assert "plain bfloat16 was timed" not in text
