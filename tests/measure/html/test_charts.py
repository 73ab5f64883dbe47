from __future__ import annotations

from inference_pio.measure.html.change import change_of
from inference_pio.measure.html.charts import bars, forest, perplexity_points, point, step_bars
from inference_pio.measure.html.columns import Column, columns_of_report, columns_of_steps
from inference_pio.measure.html.quantities import ALL, DECODE, RESIDENT
from inference_pio.measure.html.scale import Linear
from tests.measure.html.sample import recorded, with_steps


def test_bars_start_at_zero_and_the_farthest_round_ends_the_axis() -> None:
    chart = bars(DECODE, columns_of_report(recorded()))
    assert chart is not None
    assert [mark.start for mark in chart.marks] == [0.0] * 3
    optimized = chart.marks[-1]
    assert optimized.text == "33.2 tokens/s"
    assert max(optimized.dots) == 100.0
    assert len(optimized.dots) == 5
    assert optimized.interval == (min(optimized.dots), 100.0)
    assert optimized.at / chart.marks[1].at == recorded_ratio()
    assert chart.note == "tokens/s, higher is better"


def recorded_ratio() -> object:
    import pytest

    return pytest.approx(recorded()["comparison"]["decode_speedup"], rel=1e-3)


def test_memory_that_is_held_for_undo_is_a_part_of_its_bar() -> None:
    measured = {"resident_bytes": 100, "details": {"held_bytes": 40}}
    chart = bars(RESIDENT, [Column("a", measured, "s0")])
    assert chart is not None
    assert chart.marks[0].held == (60.0, 40.0)


def test_what_nobody_measured_is_no_chart() -> None:
    assert bars(DECODE, [Column("a", {}, "s0")]) is None
    assert perplexity_points([Column("a", {"perplexity": None}, "s0")]) is None


def test_each_step_tells_its_change_from_the_one_before() -> None:
    chart = step_bars(DECODE, columns_of_steps(with_steps()))
    assert chart is not None
    assert [(mark.name, mark.range) for mark in chart.marks] == [
        ("plain", ""), ("after tensor_compression", "54% faster"),
    ]  # fmt: skip
    assert step_bars(DECODE, columns_of_steps(recorded())) is None


def test_perplexities_are_points_with_their_intervals_on_an_axis_of_their_own() -> None:
    chart = perplexity_points(columns_of_report(recorded()))
    assert chart is not None
    assert chart.kind == "points"
    for mark in chart.marks:
        assert mark.interval is not None
        assert 0.0 < mark.interval[0] < mark.at < mark.interval[1] < 100.0


def test_one_point_stands_on_its_axis() -> None:
    chart = point("title", "note", ("96%", 96.0), Linear(0.0, 100.0), (95.0, 97.0), "95–97")
    assert (chart.marks[0].at, chart.marks[0].interval) == (96.0, (95.0, 97.0))


def test_a_forest_puts_more_to_the_right_of_one_and_marks_what_is_not_sure() -> None:
    comparison = recorded()["comparison"]
    changes = [change for quantity in ALL if (change := change_of(quantity, comparison))]
    chart = forest("title", "", changes)
    marks = {mark.name: mark for mark in chart.marks}
    assert len(marks) == 7
    assert marks["Decode"].at > chart.zero == 50.0 > marks["Prefill"].at
    assert (marks["Decode"].series, marks["Prefill"].series) == ("gain", "loss")
    assert (marks["Decode"].sure, marks["Prefill"].sure) == (True, False)
    assert marks["Prefill"].said == "Prefill: 0.86×, 14% slower (0.75–1.19×)"
