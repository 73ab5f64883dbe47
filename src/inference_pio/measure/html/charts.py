"""What a chart shows: rows of marks, each placed in percent of the chart's width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from inference_pio.measure.html.change import Change
from inference_pio.measure.html.columns import Column
from inference_pio.measure.html.quantities import PERPLEXITY, Pair, Quantity
from inference_pio.measure.html.scale import Factors, Linear, Tick, from_zero, span
from inference_pio.measure.report_table import change_in_words


@dataclass(frozen=True)
class Mark:
    """One row: its name and value in words, the bar or point with its interval, the samples as dots."""

    name: str
    text: str
    series: str
    at: float
    start: float = 0.0
    interval: Pair | None = None
    range: str = ""
    dots: tuple[float, ...] = ()
    note: str = ""
    held: Pair | None = None
    sure: bool = True

    @property
    def width(self) -> float:
        return round(self.at - self.start, 3)

    @property
    def said(self) -> str:
        """The row for those who hear the page."""
        return ": ".join(filter(None, (self.name, self.text))) + (f" ({self.range})" if self.range else "")


@dataclass(frozen=True)
class Chart:
    """Rows under one title; `kind` is bars (from 0) or points (on an axis with ticks)."""

    title: str
    note: str
    marks: tuple[Mark, ...]
    kind: str = "bars"
    ticks: tuple[Tick, ...] = field(default=())
    zero: float | None = None


def bars(quantity: Quantity, columns: Sequence[Column]) -> Chart | None:
    """A quantity as bars from 0, one a model, its rounds as dots and their reach as a whisker."""
    rows = _measured(quantity, columns)
    if not rows:
        return None
    intervals = [quantity.interval(column.measured) for column, _ in rows]
    scale = from_zero([*(value for _, value in rows), *(edge for one in intervals if one for edge in one)])
    return Chart(
        quantity.title,
        ", ".join(filter(None, (quantity.unit, quantity.direction))),
        tuple(_bar(quantity, column, value, scale) for column, value in rows),
    )


def step_bars(quantity: Quantity, columns: Sequence[Column]) -> Chart | None:
    """The same, step after step: each bar tells its change from the one before."""
    chart = bars(quantity, columns)
    if chart is None:
        return None
    values = [value for _, value in _measured(quantity, columns)]
    changes = ["", *(_words(quantity, now, before) for before, now in pairwise(values))]
    marks = tuple(replace(mark, range=change) for mark, change in zip(chart.marks, changes, strict=True))
    return replace(chart, marks=marks)


def perplexity_points(columns: Sequence[Column]) -> Chart | None:
    """The perplexity as points with their intervals: a bar from 0 would hide what there is to see."""
    rows = _measured(PERPLEXITY, columns)
    if not rows:
        return None
    edges = [edge for column, value in rows for edge in (value, *(PERPLEXITY.interval(column.measured) or ()))]
    scale = span(edges)
    marks = tuple(_bar(PERPLEXITY, column, value, scale) for column, value in rows)
    return Chart(PERPLEXITY.title, f"{PERPLEXITY.direction}; 95% intervals", marks, "points", tuple(scale.ticks()))


def layer_bars(title: str, values: Mapping[str, float]) -> Chart:
    """One bar for each of many layers, from 0.

    >>> [(mark.name, mark.text, mark.width) for mark in layer_bars("rates", {"a": 0.5, "b": 1.0}).marks]
    [('a', '0.50', 50.0), ('b', '1.00', 100.0)]
    """
    scale = from_zero(list(values.values()))
    marks = tuple(Mark(name, f"{value:.2f}", "s0", scale.at(value), scale.at(0.0)) for name, value in values.items())
    return Chart(title, f"{len(values)} layers", marks)


def point(title: str, note: str, value: tuple[str, float], scale: Linear, interval: Pair | None, range: str) -> Chart:
    """One value with its interval on an axis."""
    text, found = value
    edges = (scale.at(interval[0]), scale.at(interval[1])) if interval else None
    mark = Mark("", text, "s0", scale.at(found), interval=edges, range=range)
    return Chart(title, note, (mark,), "points", tuple(scale.ticks()))


def forest(title: str, note: str, changes: Sequence[Change]) -> Chart:
    """Ratios around 1, on an axis where half and double are the same way off."""
    scale = Factors.around(edge for each in changes for edge in (each.ratio, *(each.interval or ())))
    marks = tuple(
        Mark(
            change.title, f"{change.times}, {change.text}", change.kind, scale.at(change.ratio), scale.at(1.0),
            (scale.at(change.interval[0]), scale.at(change.interval[1])) if change.interval else None, change.range,
            sure=change.sure,
        )
        for change in changes
    )  # fmt: skip
    return Chart(title, note, marks, "forest", tuple(scale.ticks()), scale.at(1.0))


def _words(quantity: Quantity, now: float, before: float) -> str:
    return change_in_words(now / before, quantity.words, quantity.ratio_digits) if before else ""


def _measured(quantity: Quantity, columns: Sequence[Column]) -> list[tuple[Column, float]]:
    found = [(column, quantity.value(column.measured)) for column in columns]
    return [(column, value) for column, value in found if value is not None]


def _bar(quantity: Quantity, column: Column, value: float, scale: Linear) -> Mark:
    interval, samples = quantity.interval(column.measured), quantity.samples(column.measured)
    return Mark(
        column.name, quantity.text(value), column.series, scale.at(value),
        interval=(scale.at(interval[0]), scale.at(interval[1])) if interval else None,
        range=f"{quantity.form(interval[0])}–{quantity.form(interval[1])}" if interval else "",
        dots=tuple(scale.at(sample) for sample in samples),
        held=_held(quantity, column, value, scale),
    )  # fmt: skip


def _held(quantity: Quantity, column: Column, value: float, scale: Linear) -> Pair | None:
    """Where the part begins that is held for undo, and how wide it is."""
    held = column.held_bytes if quantity.key == "resident_bytes" else 0.0
    if not held:
        return None
    start = scale.at(value - held)
    return start, round(scale.at(value) - start, 3)
