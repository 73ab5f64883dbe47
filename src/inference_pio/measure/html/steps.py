"""What was planned and done, step by step: places, skips with reasons, decisions, cost, and the weights after each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference_pio.measure.html.charts import Chart, Mark
from inference_pio.measure.html.scale import from_zero
from inference_pio.measure.html.words import figure, number, settings, size

SHOWN_PATHS = 60
"""Paths shown of one list: the JSON holds them all, and a mixture of experts has tens of thousands."""


@dataclass(frozen=True)
class Paths:
    """Places in the model under one heading, and how many more there are."""

    heading: str
    count: int
    shown: tuple[str, ...]

    @property
    def more(self) -> int:
        return self.count - len(self.shown)


@dataclass(frozen=True)
class Step:
    """One step: `done` where there is a receipt of it, else it is only planned."""

    name: str
    done: bool
    badges: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    parameters: tuple[tuple[str, str], ...]
    decision: tuple[tuple[str, str], ...]
    places: Paths
    skips: tuple[Paths, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """All steps of one profile on the model, and what the plan left out or took back."""

    name: str
    steps: tuple[Step, ...]
    left: tuple[tuple[str, str], ...]
    removed: tuple[str, ...]
    notes: tuple[str, ...]
    weights: Chart | None
    failed: str = ""


def run_of(name: str, plan: Mapping[str, Any] | None, receipts: Sequence[Mapping[str, Any]], failed: str = "") -> Run:
    """The steps of a plan with their receipts; receipts alone, where a record keeps no planned steps."""
    plan = plan or {}
    planned = {one["name"]: one for one in plan.get("steps") or () if isinstance(one, Mapping)}
    done = {one["name"]: one for one in receipts}
    names = dict.fromkeys((*done, *planned))
    return Run(
        name,
        tuple(_step(each, planned.get(each, {}), done.get(each)) for each in names),
        tuple((str(one.get("name")), str(one.get("reason"))) for one in plan.get("skipped") or ()),
        tuple(map(str, plan.get("removed") or ())),
        tuple(map(str, plan.get("notes") or ())),
        weights_by_step(receipts),
        failed,
    )


def weights_by_step(receipts: Sequence[Mapping[str, Any]]) -> Chart | None:
    """The weights before, what each step took off or added, and the weights after."""
    sizes = [(str(one["name"]), number(one.get("weight_bytes_before")), number(one.get("weight_bytes_after")))
             for one in receipts]  # fmt: skip
    known = [(name, before, after) for name, before, after in sizes if before is not None and after is not None]
    if not known:
        return None
    scale = from_zero(edge for _, before, after in known for edge in (before, after))
    first, last = known[0][1], known[-1][2]
    return Chart(
        "Weights, step by step", "lower is better",
        (
            Mark("before", size(first), "base", scale.at(first)),
            *(_change(name, before, after, scale.at(min(before, after)), scale.at(max(before, after)))
              for name, before, after in known),
            Mark("after", size(last), "s0", scale.at(last)),
        ),
        "falls",
    )  # fmt: skip


def _change(name: str, before: float, after: float, low: float, high: float) -> Mark:
    if before == after:
        return Mark(name, "no change", "same", high, high)
    text = size(after - before)
    return Mark(name, text if after < before else f"+{text}", "gain" if after < before else "loss", high, low)


def _step(name: str, planned: Mapping[str, Any], receipt: Mapping[str, Any] | None) -> Step:
    told = receipt or planned
    badges = (told.get("type"), told.get("stage"), planned.get("source"))
    return Step(
        name,
        receipt is not None,
        tuple(str(badge) for badge in badges if badge),
        tuple(_facts(receipt) if receipt else _forecast(planned)),
        tuple(settings(told.get("parameters") or {})),
        tuple(settings(told.get("decision") or {})),
        paths_of("places", told.get("sites") or (), told.get("site_count")),
        tuple(paths_of(str(one["reason"]), one["paths"], one["count"]) for one in told.get("skipped") or ()),
        tuple(map(str, told.get("notes") or ())),
    )


def paths_of(heading: str, sites: Sequence[Any], count: Any) -> Paths:
    """The first of some places; a record that was cut says so with a last `...`, which is no place."""
    paths = [str(site["path"] if isinstance(site, Mapping) else site) for site in sites]
    shown = tuple(path or "the whole model" for path in paths if path != "...")[:SHOWN_PATHS]
    told = number(count)
    return Paths(heading, max(int(told) if told is not None and math.isfinite(told) else 0, len(shown)), shown)


def _facts(receipt: Mapping[str, Any]) -> list[tuple[str, str]]:
    before, after = number(receipt.get("weight_bytes_before")), number(receipt.get("weight_bytes_after"))
    facts = [("took", f"{figure(number(receipt.get('seconds')) or 0.0)} s")]
    if receipt.get("backend"):
        facts.append(("backend", str(receipt["backend"])))
    if before is not None and after is not None:
        facts.append(("weights", f"{size(before)} → {size(after)}" if before != after else "not changed"))
    held, parked = number(receipt.get("held_bytes")) or 0.0, number(receipt.get("parked_bytes")) or 0.0
    facts.append(("held in memory for undo", size(held)))
    facts.append(("parked for undo", f"{size(parked)}: {receipt.get('originals')}" if parked else "nothing"))
    facts.append(("can be taken back", "yes, exactly" if receipt.get("reversible") else "no"))
    return [*facts, *((f"counted: {name}", value) for name, value in settings(receipt.get("counted") or {}))]


def _forecast(planned: Mapping[str, Any]) -> list[tuple[str, str]]:
    after = number(planned.get("weight_bytes_after"))
    facts = [("action", str(planned["action"]))] if planned.get("action") else []
    if planned.get("backend"):
        facts.append(("backend", str(planned["backend"])))
    return [*facts, ("weights after it", f"{size(after)} (predicted)")] if after is not None else facts
