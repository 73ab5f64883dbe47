"""`pio optimize`: plan, measure, optimize, measure again, and show what was gained and lost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from inference_pio.cli.bars import Bars, working
from inference_pio.cli.border import TARGETS_MISSED
from inference_pio.cli.opening import apply_shown, open_shown, plan_shown
from inference_pio.cli.options import (
    Assign,
    Debug,
    Device,
    Disable,
    Dtype,
    DtypeOption,
    Enable,
    GpuBudget,
    Hardware,
    HostBudget,
    HtmlFile,
    Json,
    Model,
    MostKL,
    MostPerplexity,
    Profile,
    Quiet,
    Trust,
    ask,
)  # fmt: skip
from inference_pio.cli.output import Output, require_savable
from inference_pio.errors import InvalidSetting

if TYPE_CHECKING:
    from inference_pio.integration.asked import Asked
    from inference_pio.integration.side_by_side import Outcome
    from inference_pio.plan.plan import Plan
    from inference_pio.sources import OpenedModel

Save = Annotated[Path | None, typer.Option("--save", help="Save the optimized model to this folder.", metavar="FOLDER")]
Measure = Annotated[bool, typer.Option("--measure/--no-measure", help="Measure before and after, which takes minutes.")]
EachStep = Annotated[bool, typer.Option("--each-step", help="Measure after each step too, which takes minutes more.")]
Check = Annotated[
    bool, typer.Option("--check-targets", help="End with exit code 3 where the profile's targets are missed.")
]


def optimize(
    model: Model, profile: Profile = "balanced", enable: Enable = None, disable: Disable = None, assign: Assign = None,
    save: Save = None, measure: Measure = True, each_step: EachStep = False, check_targets: Check = False,
    max_kl: MostKL = None, max_perplexity_ratio: MostPerplexity = None, hardware: Hardware = None,
    dtype: DtypeOption = Dtype.bfloat16, device: Device = None, gpu_budget: GpuBudget = None,
    host_budget: HostBudget = None, trust_remote_code: Trust = False, json: Json = None, report: HtmlFile = None,
    quiet: Quiet = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Optimize MODEL and show what that does to speed, memory and quality on this machine."""
    output = Output(json, html_file=report, quiet=quiet)
    if check_targets and not measure:
        raise typer.BadParameter("targets are checked against measurements: leave --no-measure out.",
                                 param_hint="--check-targets")  # fmt: skip
    if each_step and not measure:
        raise typer.BadParameter("steps are measured: leave --no-measure out.", param_hint="--each-step")
    within = gpu_budget is not None or host_budget is not None
    if within and measure:
        raise typer.BadParameter("what is measured is compared with the plain model, which has no room in a budget: "
                                 "add --no-measure.", param_hint="a budget")  # fmt: skip
    if save is not None:
        require_savable(save)
        for option, file in (("--json", json), ("--report", report)):
            if file is not None and Path(file).absolute() == save.absolute():
                raise InvalidSetting(f"--save and {option} both name {file}: give them two places.")
    asked = ask(
        model, profile, enable, disable, assign, dtype, device, trust_remote_code, hardware=hardware, max_kl=max_kl,
        max_perplexity_ratio=max_perplexity_ratio,
    )  # fmt: skip
    if within:
        outcome = _within(asked, gpu_budget, host_budget, output)
    else:
        outcome = _measured(asked, output, each_step) if measure else _unmeasured(asked, output)
    for receipt in outcome.report.receipts:
        output.show(_line(receipt))
    if measure:
        output.show("")
        output.show(outcome.report.to_table())
    output.show(_standing(outcome.report.status))
    if save is not None:
        _save(outcome, save, output)
    missed = _missed(asked, outcome) if check_targets else None
    output.finish(outcome.report.to_json() | ({} if missed is None else {"targets_missed": missed}))
    if missed is not None:
        _tell(missed, asked.profile, output)


def _measured(asked: Asked, output: Output, each_step: bool) -> Outcome:
    from inference_pio.integration.side_by_side import SideBySide

    bars = Bars(output.quiet)
    run = SideBySide(asked, bars, each_step=each_step)
    output.show(str(run.plan(open_shown(asked, output.quiet))))
    with bars:
        return run.measure()


def _unmeasured(asked: Asked, output: Output) -> Outcome:
    opened = open_shown(asked, output.quiet)
    plan = plan_shown(asked, opened, output.quiet)
    output.show(str(plan))
    apply_shown(asked, opened, output.quiet)
    return _told(asked, opened, plan)


def _within(asked: Asked, gpu: str | None, host: str | None, output: Output) -> Outcome:
    """Optimized as it loads: the plain model is never in memory whole."""
    from inference_pio.integration.loading import Budgets

    opened, plan = asked.load(Budgets(gpu, host), progress=not output.quiet)
    if plan is not None:
        output.show(str(plan))
    return _told(asked, opened, plan)


def _told(asked: Asked, opened: OpenedModel, plan: Plan | None) -> Outcome:
    from inference_pio.integration.measured import receipts_of, status_for_report
    from inference_pio.integration.side_by_side import Outcome
    from inference_pio.measure import Report

    report = Report(
        model=opened.name, profile=asked.profile, plan=plan.to_json() if plan is not None else None,
        receipts=receipts_of(opened.model), notes=opened.notes, status=status_for_report(opened.model),
    )  # fmt: skip
    return Outcome(opened, report)


def _standing(status: Mapping[str, Any] | None) -> Table:
    from inference_pio.measure.html.standing import standing_of

    table = Table(title="on the model now", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # a path cut short cannot be typed again
    for name, text in standing_of(status):
        table.add_row(name, text)
    return table


def _save(outcome: Outcome, folder: Path, output: Output) -> None:
    from inference_pio.artifact import save

    with working(f"saving to {folder}", output.quiet):
        place = save(outcome.opened.model, folder, outcome.opened.tokenizer)
    output.show(f"saved to {place}")


def _missed(asked: Asked, outcome: Outcome) -> list[dict[str, Any]]:
    from inference_pio.configuration import get_config_manager
    from inference_pio.configuration.missed_targets import targets_missed

    here = asked.here(outcome.opened.model).name
    profile = get_config_manager().get_profile(asked.profile).for_hardware(here)
    return [one.to_json() | {"said": str(one)} for one in targets_missed(profile, outcome.report.comparison)]


def _tell(missed: list[dict[str, Any]], profile: str, output: Output) -> None:
    for one in missed:
        typer.echo(f"target missed: {one['said']}", err=True)
    if missed:
        raise typer.Exit(TARGETS_MISSED)
    output.show(f"no target of profile {profile} is missed")


def _line(receipt: Mapping[str, Any]) -> str:
    """One receipt in one line."""
    saved = receipt["weight_bytes_before"] - receipt["weight_bytes_after"]
    parts = [f"{receipt['site_count']} places", f"backend {receipt['backend']}" if receipt["backend"] else ""]
    parts.append(f"weights {-saved / 1e6:+.1f} MB" if saved else "")
    parts.append(f"{receipt['held_bytes'] / 1e6:.1f} MB held, {receipt['parked_bytes'] / 1e6:.1f} MB parked for undo")
    parts.append(f"{receipt['seconds']:.2f} s")
    return f"done: {receipt['name']}: {', '.join(filter(None, parts))}"
