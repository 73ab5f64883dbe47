from __future__ import annotations

from dataclasses import fields

from inference_pio.measure.comparison import Comparison
from inference_pio.measure.html.quantities import ALL, DECODE, FIRST, PERPLEXITY, RESIDENT, pair
from inference_pio.measure.measurement import Measurement
from tests.measure.html.sample import recorded

AGAINST_ORIGINAL = {"kl_nats_per_token", "top1_agreement", "greedy_agreement"}


def test_each_quantity_is_one_of_a_measurement_and_its_ratio_one_of_a_comparison() -> None:
    assert {one.key for one in ALL} == {part.name for part in fields(Measurement)} - {"details"}
    ratios = {part.name for part in fields(Comparison)} - {*AGAINST_ORIGINAL, "intervals"}
    assert {one.ratio for one in ALL} == ratios


def test_values_come_in_the_quantitys_unit() -> None:
    optimized = recorded()["optimized"]
    assert DECODE.text(DECODE.value(optimized) or 0.0) == "33.2 tokens/s"
    assert FIRST.text(FIRST.value(optimized) or 0.0) == "82.2 ms"
    assert RESIDENT.text(RESIDENT.value(optimized) or 0.0) == "163.2 MB"


def test_the_interval_of_a_speed_is_that_of_its_rounds_and_that_of_the_perplexity_is_measured() -> None:
    optimized = recorded()["optimized"]
    assert DECODE.interval(optimized) == (30.43197310542207, 36.96849026234582)
    assert PERPLEXITY.interval(optimized) == (12.160701829597532, 15.533028112989632)
    assert RESIDENT.interval(optimized) is None


def test_what_was_not_measured_has_no_value_and_no_interval() -> None:
    for measured in ({}, {"details": None}, {"details": {"speed": None, "quality": None}, "perplexity": None}):
        assert [one.value(measured) for one in ALL] == [None] * len(ALL)
        assert [one.interval(measured) for one in ALL] == [None] * len(ALL)


def test_an_interval_has_two_numbers() -> None:
    assert pair([1, "inf"]) == (1.0, float("inf"))
    assert pair([1]) is pair(None) is pair(["a", 2]) is None
