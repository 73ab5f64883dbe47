from __future__ import annotations

from inference_pio.measure.html.columns import columns_of_profiles, columns_of_report, columns_of_steps, series
from tests.measure.html.sample import profiles_of_record, recorded, with_steps


def test_a_report_has_what_stands_beside_first_and_the_optimized_model_last() -> None:
    found = [(one.name, one.series) for one in columns_of_report(recorded())]
    assert found == [("plain float32", "beside"), ("plain bfloat16", "base"), ("optimized", "s0")]


def test_a_report_without_measurements_has_no_columns() -> None:
    assert columns_of_report({"model": "x", "baseline": None, "optimized": None}) == []


def test_profiles_that_were_measured_have_a_colour_each() -> None:
    found = [(one.name, one.series) for one in columns_of_profiles(profiles_of_record())]
    assert found == [("plain bfloat16", "base"), ("balanced", "s0"), ("performance", "s1")]


def test_steps_are_columns_where_they_were_measured() -> None:
    found = [(one.name, one.series) for one in columns_of_steps(with_steps())]
    assert found == [("plain", "base"), ("after tensor_compression", "s0")]
    assert columns_of_steps(recorded()) == columns_of_steps(recorded(steps=[])) == []


def test_there_is_a_colour_for_every_number() -> None:
    assert {series(number) for number in range(20)} == {"s0", "s1", "s2", "s3", "s4"}


def test_held_bytes_are_those_of_the_details() -> None:
    measured = {**recorded()["optimized"], "details": {"held_bytes": 7}}
    assert columns_of_report(recorded(optimized=measured))[-1].held_bytes == 7
