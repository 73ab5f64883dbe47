"""`pio generate`: text from an optimized model, as it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from inference_pio.cli.bars import working
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
    HostBudget,
    Json,
    Model,
    Profile,
    Quiet,
    Trust,
    ask,
    given,
)  # fmt: skip
from inference_pio.cli.output import Output
from inference_pio.errors import InvalidSetting

if TYPE_CHECKING:
    from inference_pio.integration.asked import Asked
    from inference_pio.measure import Report
    from inference_pio.sources import OpenedModel

Prompt = Annotated[str, typer.Option(help="What the model is asked, or the text that it goes on with.")]
Length = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Stop after so many tokens at the latest.")]
Chat = Annotated[bool, typer.Option("--chat/--no-chat", help="Use the tokenizer's chat form, where it has one.")]
Plain = Annotated[bool, typer.Option("--plain", help="Apply nothing: the model as it is.")]
BUDGETS = ("gpu_budget", "host_budget")
APPLYING = ("profile", "enable", "disable", "assign")
OPENING = ("plain", "dtype", "trust_remote_code", *BUDGETS)


def generate(
    context: typer.Context, model: Model, prompt: Prompt, profile: Profile = "balanced", plain: Plain = False,
    length: Length = 128, chat: Chat = True, enable: Enable = None, disable: Disable = None, assign: Assign = None,
    dtype: DtypeOption = Dtype.bfloat16, device: Device = None, gpu_budget: GpuBudget = None,
    host_budget: HostBudget = None, trust_remote_code: Trust = False, json: Json = None, quiet: Quiet = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Generate text with MODEL under a profile, greedily; MODEL may also be a folder that `pio optimize` saved."""
    output = Output(json, quiet=quiet)

    from inference_pio.integration.generation import generate_text
    from inference_pio.integration.saved import is_saved

    if is_saved(model):
        if said := given(context, (*APPLYING, *OPENING)):
            raise InvalidSetting(f"{model} holds a model that runs as it was saved: leave {', '.join(said)} out.")
        opened, report = _saved(model, device, quiet)
    else:
        if plain and (said := given(context, APPLYING)):
            raise typer.BadParameter(f"it applies nothing: leave {', '.join(said)} out.", param_hint="--plain")
        if plain and (said := given(context, BUDGETS)):
            raise typer.BadParameter(f"layers would stream: leave {', '.join(said)} out.", param_hint="--plain")
        asked = ask(model, profile, enable, disable, assign, dtype, device, trust_remote_code)
        if given(context, BUDGETS):
            opened, report = _within(asked, gpu_budget, host_budget, quiet)
        else:
            opened, report = _prepared(asked, plain, quiet)
    found = generate_text(opened, prompt, max_new_tokens=length, chat=chat, say=output.stream)
    output.stream("\n")
    rate = f", {found.decode_tokens_per_s:.1f} tokens/s after it" if found.decode_tokens_per_s else ""
    output.show(f"({found.new_tokens} tokens, the first after {found.time_to_first_token_s:.2f} s{rate})")
    output.finish(report.to_json() | {"prompt": prompt, **found.to_json()})


def _prepared(asked: Asked, plain: bool, quiet: bool) -> tuple[OpenedModel, Report]:
    from inference_pio.integration.measured import receipts_of
    from inference_pio.measure import Report

    opened = open_shown(asked, quiet)
    if plain:
        return opened, Report(model=opened.name, notes=opened.notes)
    plan = plan_shown(asked, opened, quiet)
    apply_shown(asked, opened, quiet)
    receipts = receipts_of(opened.model)
    return opened, Report(opened.name, asked.profile, plan.to_json(), receipts, notes=opened.notes)


def _within(asked: Asked, gpu: str | None, host: str | None, quiet: bool) -> tuple[OpenedModel, Report]:
    """A model that never was in memory whole."""
    from inference_pio.integration.loading import Budgets
    from inference_pio.integration.measured import receipts_of
    from inference_pio.measure import Report

    opened, plan = asked.load(Budgets(gpu, host), progress=not quiet)
    told = plan.to_json() if plan is not None else None
    return opened, Report(opened.name, asked.profile, told, receipts_of(opened.model), notes=opened.notes)


def _saved(folder: str, device: str | None, quiet: bool) -> tuple[OpenedModel, Report]:
    from inference_pio.integration.measured import receipts_of
    from inference_pio.integration.saved import open_saved
    from inference_pio.measure import Report

    with working(f"reading {folder}", quiet):
        opened = open_saved(folder, device)
    return opened, Report(opened.name, receipts=receipts_of(opened.model), notes=opened.notes)
