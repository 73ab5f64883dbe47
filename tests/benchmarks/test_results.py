"""A results file is checked when it is written and when it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import earlier, results
from tests.benchmarks.test_report import BROKEN, example


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    results.write(example(broken=BROKEN), tmp_path / "x.json")
    found = results.read(tmp_path / "x.json")
    assert found["arms"]["broken"] == BROKEN
    assert found["date"] > "2026-01-01"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda found: found.pop("ceilings"), "no 'ceilings'"),
        (lambda found: found.update(schema=99), "schema 99"),
        (lambda found: found.update(arms=[]), "'arms' is a list"),
        (lambda found: found["arms"]["plain"].update(status="fine"), "none of ok, wrong"),
        (
            lambda found: found["arms"]["plain"].update(
                status="wrong", reason="so", cases=found["arms"]["plain"]["cases"]
            ),
            "if",
        ),
        (lambda found: found["arms"]["plain"].update(status="failed", reason="", cases={}), "without a reason"),
        (lambda found: found["arms"]["plain"]["cases"]["decode"].pop("samples"), "no 'samples'"),
    ],
)
def test_a_file_that_lacks_something_is_refused(tmp_path: Path, spoil: Any, says: str) -> None:
    found = example()
    spoil(found)
    (tmp_path / "x.json").write_text(json.dumps(found))
    with pytest.raises(results.BadResults, match=says):
        results.read(tmp_path / "x.json")


def test_a_file_that_is_no_json_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(results.BadResults, match=r"x\.json cannot be read"):
        results.read(tmp_path / "x.json")


def test_recorded_results_are_whole_and_no_smoke() -> None:
    from benchmarks import report

    for path, found in report.load(results.FOLDER).items():
        assert not found["smoke"], path.name
        assert path.name == results.path_of(found["suite"], found["device"]).name


def test_rows_measured_before_are_told_and_what_is_apart_is_to_be_explained() -> None:
    found = example() | {"suite": "decode-qwen3-4b", "device": "NVIDIA H100 80GB HBM3"}
    assert earlier.told(found) == ["  plain, decode: 50 tok/s, before 31.8 (+57%): EXPLAIN THIS"]
    found["arms"]["plain"]["cases"]["decode"]["median"] = 33.0
    assert earlier.told(found) == ["  plain, decode: 33 tok/s, before 31.8 (+4%)"]
    assert earlier.told(found | {"device": "NVIDIA H200"}) == []


def test_what_was_measured_before_are_systems_of_the_suites() -> None:
    from benchmarks.suites import SUITES

    for name, arms in earlier.MEASURED.items():
        assert set(arms) <= {*SUITES[name].arms, *SUITES[name].optional}
        lengths = {str(length) for length in SUITES[name].lengths}
        assert all(set(cases) <= (lengths or {"decode"}) for cases in arms.values())
