"""Several profiles on one model: a report of all against the same baseline, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from inference_pio.measure.comparison import Comparison
from inference_pio.measure.machine import Machine
from inference_pio.measure.measurement import Measurement, plain_json
from inference_pio.measure.report_table import ROWS, Row, against_original, ratio_cell


@dataclass(frozen=True)
class Tried:
    """One profile: what was planned, done and measured; or, in `failed`, why nothing of it applies here."""

    profile: str
    plan: Mapping[str, Any] | None = None
    receipts: Sequence[Mapping[str, Any]] = ()
    optimized: Measurement | None = None
    comparison: Comparison | None = None
    failed: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "plan": plain_json(self.plan),
            "receipts": plain_json(list(self.receipts)),
            "optimized": self.optimized.to_json() if self.optimized else None,
            "comparison": self.comparison.to_json() if self.comparison else None,
            "failed": self.failed,
        }


@dataclass(frozen=True)
class ProfilesReport:
    """One model, its plain numbers, and its numbers under each profile; every ratio is against the plain ones."""

    model: str
    baseline: Measurement
    profiles: Sequence[Tried]
    baseline_name: str = "plain"
    machine: Machine | None = None
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Strict JSON."""
        return {
            "model": self.model,
            "baseline_name": self.baseline_name,
            "baseline": self.baseline.to_json(),
            "profiles": [tried.to_json() for tried in self.profiles],
            "machine": self.machine.to_json() if self.machine else None,
            "notes": list(self.notes),
        }

    def to_table(self) -> RenderableType:
        """One row per quantity, one column per profile, each value with its ratio; machine and notes below."""
        measured = {one.profile: one for one in self.profiles if one.optimized and one.comparison}
        table = Table(title=f"{self.model}, {len(self.profiles)} profiles", title_justify="left", show_lines=True)
        table.add_column("")
        for name in (self.baseline_name, *measured):
            table.add_column(name, justify="right")
        for row in ROWS:
            table.add_row(row.label, row.cell(self.baseline), *(_cell(one, row) for one in measured.values()))
        for row_of_texts in _against_original([one.comparison for one in measured.values() if one.comparison]):
            table.add_row(*row_of_texts)
        failed = [f"{one.profile}: not measured: {one.failed}" for one in self.profiles if one.failed]
        below = [*failed, *([str(self.machine)] if self.machine else []), *self.notes]
        return Group(table, *(Text(line) for line in below))


def _cell(tried: Tried, row: Row) -> str:
    value = row.cell(tried.optimized) if tried.optimized else ""
    return "\n".join(filter(None, (value, ratio_cell(tried.comparison, row) if tried.comparison else "")))


def _against_original(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """The rows of the divergence and the agreement, where quality was measured."""
    known = [dict(against_original(one)) for one in comparisons if one.kl_nats_per_token is not None]
    if len(known) < len(comparisons) or not known:
        return []
    return [[label, "", *(texts[label] for texts in known)] for label in known[0]]
