"""Receipts and measurements together: what was done to a model and what it brought, as JSON and as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from inference_pio.files import write_atomically
from inference_pio.measure.comparison import Comparison
from inference_pio.measure.machine import Machine
from inference_pio.measure.measurement import Measurement, plain_json
from inference_pio.measure.report_steps import AfterStep, step_lines
from inference_pio.measure.report_table import report_table

# Below this the system itself is the neighbour.
QUIET_CORES = 0.1


@dataclass(frozen=True)
class Report:
    """One model, what was planned and done, and its numbers before and after.

    `shown_beside` holds further models of the same run (plain float32, say), one column each; they enter no ratio.
    `steps` holds the plain model and then the model after each of its steps, where that was asked for.
    `status` is what `get_model_optimization_status` says of the model as it stands at the end.
    """

    model: str
    profile: str | None = None
    plan: Mapping[str, Any] | None = None
    receipts: Sequence[Mapping[str, Any]] = ()
    baseline: Measurement | None = None
    optimized: Measurement | None = None
    comparison: Comparison | None = None
    machine: Machine | None = None
    notes: Sequence[str] = ()
    shown_beside: Mapping[str, Measurement] = field(default_factory=dict)
    baseline_name: str = "baseline"
    optimized_name: str = "optimized"
    status: Mapping[str, Any] | None = None
    steps: Sequence[AfterStep] = ()

    def to_json(self) -> dict[str, Any]:
        """Strict JSON: model, profile, plan, receipts, baseline, optimized, comparison, and what stands beside."""
        return {
            "model": self.model,
            "profile": self.profile,
            "plan": plain_json(self.plan),
            "receipts": plain_json(list(self.receipts)),
            "baseline": self.baseline.to_json() if self.baseline else None,
            "optimized": self.optimized.to_json() if self.optimized else None,
            "comparison": self.comparison.to_json() if self.comparison else None,
            "baseline_name": self.baseline_name,
            "optimized_name": self.optimized_name,
            "shown_beside": [{"name": name, **shown.to_json()} for name, shown in self.shown_beside.items()],
            "machine": self.machine.to_json() if self.machine else None,
            "notes": list(self.notes),
            "status": plain_json(self.status),
            "steps": [step.to_json() for step in self.steps],
        }

    def to_table(self) -> RenderableType:
        """One row per quantity, one column per model, the ratio last; machine and notes below."""
        columns = dict(self.shown_beside)
        if self.baseline:
            columns[self.baseline_name] = self.baseline
        if self.optimized:
            columns[self.optimized_name] = self.optimized
        title = f"{self.model}, profile {self.profile}" if self.profile else self.model
        steps = step_lines(self.steps)
        below = [*steps, *([str(self.machine)] if self.machine else []), *_busy_notes(columns), *self.notes]
        return Group(report_table(title, columns, self.comparison), *(Text(line) for line in below))

    def save_json(self, path: Path) -> None:
        """Write the JSON whole or not at all. Raises StorageError where the place cannot be written."""
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(path, (text + "\n").encode())


def _busy_notes(columns: Mapping[str, Measurement]) -> list[str]:
    """Who reads a speed must hear that the machine was shared while it was timed."""
    busy = {name: measured.details.get("speed", {}).get("other_cores_busy", 0.0) for name, measured in columns.items()}
    return [
        f"{name} was timed while others kept {cores:.1f} cores busy: its speeds are not those of an idle machine"
        for name, cores in busy.items()
        if cores > QUIET_CORES
    ]
