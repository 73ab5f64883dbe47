"""Several profiles in one table: a row each, the plain model first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference_pio.measure.html.change import change_of
from inference_pio.measure.html.columns import Column
from inference_pio.measure.html.quantities import DECODE, FIRST, PERPLEXITY, PREFILL, RESIDENT, Quantity
from inference_pio.measure.html.words import figure, number

SHOWN = (DECODE, PREFILL, FIRST, RESIDENT, PERPLEXITY)


@dataclass(frozen=True)
class Cell:
    """A value, and how it stands to the baseline's."""

    text: str
    change: str = ""
    kind: str = "same"


@dataclass(frozen=True)
class Row:
    """One model; `failed` stands in place of numbers."""

    name: str
    series: str
    cells: tuple[Cell, ...] = ()
    failed: str = ""


@dataclass(frozen=True)
class Summary:
    """The table."""

    heads: tuple[str, ...]
    rows: tuple[Row, ...]


def summary_of(data: Mapping[str, Any], columns: Sequence[Column]) -> Summary:
    """The table of `ProfilesReport.to_json()`."""
    by_name = {str(one["profile"]): one for one in data["profiles"]}
    rows = [_row(column, (by_name.get(column.name) or {}).get("comparison") or {}) for column in columns]
    failed = [Row(name, "beside", failed=str(one["failed"])) for name, one in by_name.items() if one.get("failed")]
    heads = [quantity.title + (f", {quantity.unit}" if quantity.unit else "") for quantity in SHOWN]
    return Summary((*heads, "KL, nats/token", "Same next token"), (*rows, *failed))


def _row(column: Column, comparison: Mapping[str, Any]) -> Row:
    kl, agreement = number(comparison.get("kl_nats_per_token")), number(comparison.get("top1_agreement"))
    quality = (
        Cell(figure(kl, 2) if kl is not None else "–"),
        Cell(f"{agreement:.1%}" if agreement is not None else "–"),
    )
    return Row(column.name, column.series, (*(_cell(each, column, comparison) for each in SHOWN), *quality))


def _cell(quantity: Quantity, column: Column, comparison: Mapping[str, Any]) -> Cell:
    value, change = quantity.value(column.measured), change_of(quantity, comparison)
    if value is None:
        return Cell("not measured")
    return Cell(quantity.form(value), change.text, change.kind) if change else Cell(quantity.form(value))
