"""The models of a report side by side: each with its name, its numbers and the colour it has in every chart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference_pio.measure.html.words import number

COLOURS = 5
"""Colours that the page has for optimized models; a sixth one begins anew."""


@dataclass(frozen=True)
class Column:
    """One measured model; `series` is beside, base, or s0, s1, ... for the optimized ones."""

    name: str
    measured: Mapping[str, Any]
    series: str

    @property
    def held_bytes(self) -> float:
        details = self.measured.get("details")
        return number(details.get("held_bytes")) or 0.0 if isinstance(details, Mapping) else 0.0


def columns_of_report(data: Mapping[str, Any]) -> list[Column]:
    """What stands beside, the baseline, the optimized model: those that were measured."""
    beside = [Column(str(one.get("name")), one, "beside") for one in data.get("shown_beside") or ()]
    main = [
        Column(str(data.get(f"{which}_name") or which), data[which], series)
        for which, series in (("baseline", "base"), ("optimized", "s0"))
        if data.get(which)
    ]
    return [*beside, *main]


def columns_of_steps(data: Mapping[str, Any]) -> list[Column]:
    """The plain model, and the model after each step; empty where steps were not measured."""
    plain, *after = data.get("steps") or [None]
    if plain is None:
        return []
    columns = [Column(f"after {one['name']}", one["measured"], "s0") for one in after]
    return [Column(str(plain["name"]), plain["measured"], "base"), *columns]


def columns_of_profiles(data: Mapping[str, Any]) -> list[Column]:
    """The baseline, and the model under each profile that applied."""
    measured = [one for one in data.get("profiles") or () if one.get("optimized")]
    base = [Column(str(data.get("baseline_name") or "baseline"), data["baseline"], "base")] if data["baseline"] else []
    return [*base, *(Column(str(one["profile"]), one["optimized"], series(n)) for n, one in enumerate(measured))]


def series(number: int) -> str:
    """The colour of the n-th optimized model.

    >>> series(0), series(6)
    ('s0', 's1')
    """
    return f"s{number % COLOURS}"
