from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from inference_pio.measure.comparison import Comparison, compare_measurements
from inference_pio.measure.measurement import Measurement
from inference_pio.measure.report_table import ratio_in_words, report_table
from tests.measure.test_comparison import QUALITY, timed
from tests.measure.test_measurement import measurement


def rows(columns: dict[str, Measurement], comparison: Comparison | None = None) -> dict[str, list[str]]:
    table = report_table("title", columns, comparison)
    cells = [list(column.cells) for column in table.columns]
    return {str(row[0]): [str(cell) for cell in row[1:]] for row in zip(*cells, strict=True)}


def test_one_row_per_quantity_and_one_column_per_model():
    found = rows({"plain float32": measurement(), "plain bfloat16": measurement(weight_bytes=2_000_000)})
    assert found["weights"] == ["0.0 MB", "2.0 MB"]
    assert found["decode, tokens/s"] == ["20.0", "20.0"]
    assert found["time to first token, ms"] == ["50.0", "50.0"]
    assert found["set-up in the first call, s"] == ["not measured"] * 2
    assert len(found) == 8


def test_spreads_stand_below_the_medians():
    found = rows({"a": timed((10.0, 20.0, 40.0))})
    assert found["decode, tokens/s"] == ["20.0\n(10.0–40.0)"]
    assert found["time to first token, ms"] == ["50.0\n(25.0–100.0)"]
    assert found["set-up in the first call, s"] == ["0.5"]


def test_gains_and_losses_are_said_in_the_same_words_and_place():
    slow, fast = timed((10.0, 10.0), "one"), timed((20.0, 20.0), "one")
    gain = rows({"slow": slow, "fast": fast}, compare_measurements(slow, fast, QUALITY))
    loss = rows({"fast": fast, "slow": slow}, compare_measurements(fast, slow, QUALITY))
    assert gain["decode, tokens/s"][-1] == "2.00x, 100% faster\n(2.00–2.00)"
    assert loss["decode, tokens/s"][-1] == "0.50x, 50% slower\n(0.50–0.50)"
    assert gain["time to first token, ms"][-1] == "0.50x, 50% shorter\n(0.50–0.50)"
    assert loss["prefill, tokens/s"][-1] == "0.50x, 50% slower\n(0.50–0.50)"
    assert gain["weights"][-1] == "1.00x, the same"
    assert gain["set-up in the first call, s"][-1] == ""


def test_quality_against_the_original_stands_in_the_optimized_column():
    one = measurement()
    found = rows({"beside": one, "baseline": one, "optimized": one}, compare_measurements(one, one, QUALITY))
    assert found["KL from the original, nats/token"] == ["", "", "0.01\n(0.005–0.02)", ""]
    assert found["top-1 agreement with the original"] == ["", "", "97.00%\n(96.00%–98.00%)", ""]
    assert found["perplexity"][-1] == "1.0000x, the same\n(1.0100–1.0110)"


def test_what_was_not_measured_says_so():
    one = measurement(perplexity=None)
    found = rows({"baseline": one, "optimized": one}, compare_measurements(one, one))
    assert found["perplexity"] == ["not measured"] * 3
    assert "KL from the original, nats/token" not in found


@pytest.mark.parametrize(
    ("ratio", "digits", "words"),
    [
        (1.004, 2, "1.00x, the same"),
        (1.006, 2, "1.01x, 1% more"),
        (0.994, 2, "0.99x, 1% less"),
        (1.0012, 4, "1.0012x, 0.12% more"),
        (0.55, 2, "0.55x, 45% less"),
        (float("inf"), 2, "infx, inf% more"),
    ],
)
def test_a_ratio_in_words(ratio, digits, words):
    assert ratio_in_words(ratio, ("more", "less"), digits) == words


def test_it_prints_in_eighty_columns():
    one = timed((10.0, 20.0))
    comparison = replace(compare_measurements(one, one, QUALITY), kl_nats_per_token=0.00123)
    console = Console(width=80)
    with console.capture() as captured:
        console.print(report_table("t", {"plain bfloat16": one, "balanced": one}, comparison))
    assert "0.0012" in captured.get()
    assert "…" not in captured.get()
