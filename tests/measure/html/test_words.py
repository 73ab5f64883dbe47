from __future__ import annotations

import math

import pytest

from inference_pio.measure.html.words import figure, number, settings, size, times


@pytest.mark.parametrize(
    ("value", "read"),
    [(2, 2.0), ("inf", math.inf), ("-inf", -math.inf), (None, None), ("x", None), (True, None), ([], None)],
)
def test_only_numbers_and_the_names_of_infinities_are_numbers(value: object, read: float | None) -> None:
    assert number(value) == read


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"),
     (0.00012345, "0.000123"), (1.2345e-7, "1.23e−07"),
     (0.5, "0.5"), (1.2345, "1.23"), (99.95, "100.0"), (1234.5, "1,234"),
     (-3.14159, "−3.14"), (math.inf, "∞"), (math.nan, "not a number")],
)  # fmt: skip
def test_a_figure_has_three_digits_that_count(value: float, text: str) -> None:
    assert figure(value) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (269030272, "269.0 MB"), (6.11e10, "61.10 GB"),
     (7.1e11, "710.00 GB"), (1.2e12, "1.20 TB"), (-1.5e6, "−1.5 MB")],
)  # fmt: skip
def test_sizes_have_decimal_units(nbytes: float, text: str) -> None:
    assert size(nbytes) == text


def test_an_endless_ratio_is_told() -> None:
    assert times(math.inf) == "∞×"


def test_nested_settings_read_as_json_and_texts_as_they_are() -> None:
    assert settings({"a": {"b": [1]}, "c": "<b>", "d": None}) == [("a", '{"b": [1]}'), ("c", "<b>"), ("d", "null")]
