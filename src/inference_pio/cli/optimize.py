"""`pio optimize`: plan, measure, optimize, measure again, and show what was gained and lost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inference_pio.cli.bars import Bars
from inference_pio.cli.options import Assign, Device, Disable, Dtype, DtypeOption, Enable, Json, Model, Profile, ask
from inference_pio.cli.output import Output, require_savable

if TYPE_CHECKING:
    from inference_pio.integration.asked import Asked
    from inference_pio.integration.side_by_side import Outcome

Save = Annotated[Path | None, typer.Option("--save", help="Save the optimized model to this folder.", metavar="FOLDER")]
Measure = Annotated[bool, typer.Option("--measure/--no-measure", help="Measure before and after, which takes minutes.")]


def optimize(
    model: Model, profile: Profile = "balanced", enable: Enable = None, disable: Disable = None, assign: Assign = None,
    save: Save = None, measure: Measure = True, dtype: DtypeOption = Dtype.bfloat16, device: Device = None,
    json: Json = None,
) -> None:  # fmt: skip
    """Optimize MODEL and show what that does to speed, memory and quality on this machine."""
    output = Output(json)
    if save is not None:
        require_savable(save)
    asked = ask(model, profile, enable, disable, assign, dtype, device)
    outcome = _measured(asked, output) if measure else _unmeasured(asked, output)
    for receipt in outcome.report.receipts:
        output.show(_line(receipt))
    if measure:
        output.show("")
        output.show(outcome.report.to_table())
    if save is not None:
        from inference_pio.artifact import save as save_model

        output.show(f"saved to {save_model(outcome.opened.model, save, outcome.opened.tokenizer)}")
    output.finish(outcome.report.to_json())


def _measured(asked: Asked, output: Output) -> Outcome:
    from inference_pio.integration.side_by_side import SideBySide

    bars = Bars()
    run = SideBySide(asked, bars)
    output.show(str(run.plan()))
    with bars:
        return run.measure()


def _unmeasured(asked: Asked, output: Output) -> Outcome:
    from inference_pio.integration.measured import receipts_of
    from inference_pio.integration.side_by_side import Outcome
    from inference_pio.measure import Report

    opened = asked.open()
    plan = asked.plan(opened)
    output.show(str(plan))
    asked.apply(opened)
    report = Report(
        model=opened.name, profile=asked.profile, plan=plan.to_json(), receipts=receipts_of(opened.model),
        notes=opened.notes,
    )  # fmt: skip
    return Outcome(opened, report)


def _line(receipt: Mapping[str, Any]) -> str:
    """One receipt in one line."""
    saved = receipt["weight_bytes_before"] - receipt["weight_bytes_after"]
    parts = [f"{receipt['site_count']} places", f"backend {receipt['backend']}" if receipt["backend"] else ""]
    parts.append(f"weights {-saved / 1e6:+.1f} MB" if saved else "")
    parts.append(f"{receipt['held_bytes'] / 1e6:.1f} MB held, {receipt['parked_bytes'] / 1e6:.1f} MB parked for undo")
    parts.append(f"{receipt['seconds']:.2f} s")
    return f"done: {receipt['name']}: {', '.join(filter(None, parts))}"
