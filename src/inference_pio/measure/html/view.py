"""A report's JSON as what the page shows, section by section; nothing is measured or decided here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inference_pio.measure.html.change import Change, change_of
from inference_pio.measure.html.charts import Chart, bars, forest, layer_bars, perplexity_points, point, step_bars
from inference_pio.measure.html.columns import Column, columns_of_profiles, columns_of_report, columns_of_steps
from inference_pio.measure.html.headline import Card, cards, sentence
from inference_pio.measure.html.quantities import ALL, DECODE, PEAK, PERPLEXITY, PREFILL, RESIDENT, SPEEDS, pair
from inference_pio.measure.html.scale import Linear, from_zero
from inference_pio.measure.html.standing import standing_of
from inference_pio.measure.html.steps import Run, run_of
from inference_pio.measure.html.summary import Summary, summary_of
from inference_pio.measure.html.words import figure, number

STEPPED = (DECODE, PREFILL, RESIDENT, PERPLEXITY)
"""What is shown after each step."""


@dataclass(frozen=True)
class View:
    """All that the template places."""

    model: str
    subtitle: str
    device: str
    lead: str
    cards: Sequence[Card] = ()
    summary: Summary | None = None
    ratios: Sequence[Chart] = ()
    speeds: Sequence[Chart] = ()
    memory: Sequence[Chart] = ()
    quality: Sequence[Chart] = ()
    captions: Mapping[str, str] = field(default_factory=dict)
    steps: Sequence[Chart] = ()
    runs: Sequence[Run] = ()
    standing: Sequence[tuple[str, str]] = ()
    machine: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> View:
        """The view of `Report.to_json()`, or of `ProfilesReport.to_json()`, which is told by its `profiles`."""
        return _of_profiles(data) if "profiles" in data else _of_report(data)


def _of_report(data: Mapping[str, Any]) -> View:
    columns, comparison = columns_of_report(data), data.get("comparison") or {}
    profile = str(data["profile"]) if data.get("profile") else ""
    changes = _changes(comparison)
    return View(
        model=str(data["model"]),
        subtitle=f"profile {profile}" if profile else "",
        device=_device(data),
        lead=sentence(comparison, columns) if comparison else _unmeasured(data),
        cards=cards(comparison, columns),
        ratios=[forest("optimized ÷ baseline", "", changes)] if changes else [],
        quality=_quality(columns, comparison),
        steps=[chart for quantity in STEPPED if (chart := step_bars(quantity, columns_of_steps(data)))]
        + _by_layer(data.get("status") or {}),
        runs=[run_of("", data.get("plan"), data.get("receipts") or ())],
        standing=standing_of(data.get("status")),
        **_shared(data, columns),
    )


def _of_profiles(data: Mapping[str, Any]) -> View:
    columns = columns_of_profiles(data)
    tried = data["profiles"]
    changes = {str(one["profile"]): _changes(one.get("comparison") or {}) for one in tried}
    return View(
        model=str(data["model"]),
        subtitle=f"{len(tried)} profiles compared",
        device=_device(data),
        lead=f"One loaded model, brought from profile to profile; every ratio is against {data['baseline_name']}.",
        summary=summary_of(data, columns),
        ratios=[forest(name, "", each) for name, each in changes.items() if each],
        quality=[chart for chart in (perplexity_points(columns),) if chart],
        runs=[run_of(str(one["profile"]), one.get("plan"), one.get("receipts") or (), str(one.get("failed") or ""))
              for one in tried],
        **_shared(data, columns),
    )  # fmt: skip


BY_LAYER, MOST_LAYERS = "_by_layer", 60
"""How the name of a count ends that is told layer by layer, and how many layers are drawn: the JSON holds all."""


def _by_layer(status: Mapping[str, Any]) -> list[Chart]:
    """What optimizations counted layer by layer while the model ran."""
    found = []
    for applied in status.get("applied_optimizations") or ():
        for name, values in (applied.get("counted") or {}).items() if isinstance(applied, Mapping) else ():
            if name.endswith(BY_LAYER) and isinstance(values, Mapping):
                plain = {path: value for path, one in values.items() if (value := number(one)) is not None}
                title = f"{applied.get('name')}: {name.removesuffix(BY_LAYER).replace('_', ' ')}"
                found.append(layer_bars(title, dict(list(plain.items())[:MOST_LAYERS])))
    return found


def _shared(data: Mapping[str, Any], columns: Sequence[Column]) -> dict[str, Any]:
    return {
        "speeds": [chart for chart in (bars(quantity, columns) for quantity in SPEEDS) if chart],
        "memory": [chart for chart in (bars(quantity, columns) for quantity in (RESIDENT, PEAK)) if chart],
        "captions": _captions(columns),
        "machine": _machine(data.get("machine") or {}),
        "notes": [
            *(f"Target missed: {one.get('said')}" for one in data.get("targets_missed") or ()),
            *(str(note) for note in data.get("notes") or ()),
        ],
    }


def _changes(comparison: Mapping[str, Any]) -> list[Change]:
    return [change for quantity in ALL if (change := change_of(quantity, comparison))]


def _quality(columns: Sequence[Column], comparison: Mapping[str, Any]) -> list[Chart]:
    charts = [perplexity_points(columns)]
    intervals = comparison.get("intervals") or {}
    kl = number(comparison.get("kl_nats_per_token"))
    if kl is not None:
        ends = pair(intervals.get("kl_nats_per_token"))
        scale = from_zero([kl * 1.25, *(ends or ())])
        told = f"{figure(ends[0], 2)}–{figure(ends[1], 2)}" if ends else ""
        charts.append(point("KL from the original", "nats/token, lower is better; 95% interval",
                            (figure(kl, 2), kl), scale, ends, told))  # fmt: skip
    charts += [
        _share("Same next token as the original", comparison, "top1_agreement"),
        _share("Greedy text before it first differs", comparison, "greedy_agreement"),
    ]
    return [chart for chart in charts if chart]


def _share(title: str, comparison: Mapping[str, Any], key: str) -> Chart | None:
    share = number(comparison.get(key))
    if share is None:
        return None
    ends = pair((comparison.get("intervals") or {}).get(key))
    percents = (100 * ends[0], 100 * ends[1]) if ends else None
    told = f"{percents[0]:.1f}%–{percents[1]:.1f}%" if percents else ""
    value = (f"{share:.1%}", 100 * share)
    return point(title, "%, higher is better; 95% interval", value, Linear(0.0, 100.0), percents, told)


def _captions(columns: Sequence[Column]) -> dict[str, str]:
    """What each section's numbers stand on."""
    details: Mapping[str, Any] = (columns[-1].measured.get("details") or {}) if columns else {}
    speed, peak, quality = (details.get(name) or {} for name in ("speed", "peak", "quality"))
    said = {"memory": f"Peak: {peak['method']}." if peak.get("method") else ""}
    if speed:
        rounds = len((speed.get("decode_tokens_per_s") or {}).get("samples", ()))
        order = "in turn, round by round" if speed.get("run") else "one model after the other"
        said["steps"] = "The model after each step, with its change from the one before."
        said["speeds"] = (
            f"{rounds} rounds, timed {order}. Bars are medians, dots the rounds. "
            f"Decode: {speed.get('new_tokens')} tokens after a prompt of {speed.get('decode_prompt_tokens')}; "
            f"prefill: {speed.get('prefill_tokens')} tokens."
        )  # fmt: skip
    if quality:
        source = next((one for column in columns if (one := _source(column))), "")
        said["quality"] = f"{quality.get('tokens')} tokens of {source}."
    return said


def _source(column: Column) -> str:
    details = column.measured.get("details") or {}
    return str((details.get("quality") or {}).get("source") or "")


def _device(data: Mapping[str, Any]) -> str:
    machine = data.get("machine") or {}
    if not machine:
        return ""
    where = machine.get("cpu") if machine.get("device") == "cpu" else machine.get("device")
    if machine.get("device") != "cpu":
        return str(where)
    return f"{where}, {machine.get('threads')} {'thread' if machine.get('threads') == 1 else 'threads'}"


def _machine(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    plain = [(name.replace("_", " "), str(value)) for name, value in machine.items()
             if value is not None and not isinstance(value, Mapping)]  # fmt: skip
    return plain + [(name, str(version)) for name, version in (machine.get("versions") or {}).items() if version]


def _unmeasured(data: Mapping[str, Any]) -> str:
    done = "was optimized" if data.get("receipts") else "is planned"
    return f"What {done} stands below; speed, memory and quality were not measured."
