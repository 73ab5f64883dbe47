"""README's first table: each line names systems that are there, and tells what both were measured to do."""

from __future__ import annotations

from benchmarks.opening import LINES, opening
from benchmarks.suites import SUITES

from benchmarks import results
from tests.benchmarks.test_report import BROKEN, example


def test_every_line_names_systems_of_its_suite() -> None:
    for line in LINES:
        suite = SUITES[line.suite]
        for name in (line.beside, line.ours):
            assert name in {**suite.arms, **suite.optional}, (line.suite, name)


def test_a_line_is_the_ratio_of_two_recorded_medians() -> None:
    found = example() | {"suite": "decode-qwen3-4b"}
    text = opening([found])  # type: ignore[list-item]
    assert "| Qwen3-4B, `lossless` | one H100 | 50.0 | 100.0 | **2.0x** |" in text
    assert len(text.splitlines()) == 3


def test_a_system_that_was_not_timed_has_no_line() -> None:
    found = example() | {"suite": "decode-qwen3-4b"}
    found["arms"]["pio-lossless"] = BROKEN
    assert len(opening([found]).splitlines()) == 2  # type: ignore[list-item]


def test_what_is_recorded_here_fills_the_table() -> None:
    recorded = [results.read(path) for path in sorted(results.FOLDER.glob("decode-*.json"))]
    assert "Qwen3-30B-A3B in int4" in opening(recorded)
