"""`pio compare`: several profiles on one loaded model, all against the same baseline."""

from __future__ import annotations

from typing import Annotated

import typer

from inference_pio.cli import completion
from inference_pio.cli.bars import Bars
from inference_pio.cli.opening import open_shown
from inference_pio.cli.options import Debug, Device, Dtype, DtypeOption, HtmlFile, Json, Model, Quiet, Trust, ask
from inference_pio.cli.output import Output

Profiles = Annotated[
    str,
    typer.Option(help="The profiles to compare, names or files of your own, joined by commas.", metavar="A,B,C",
                 autocompletion=completion.profile_lists),
]  # fmt: skip


def compare(
    model: Model, profiles: Profiles, dtype: DtypeOption = Dtype.bfloat16, device: Device = None,
    trust_remote_code: Trust = False, json: Json = None, report: HtmlFile = None, quiet: Quiet = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Measure MODEL plain and under each of some profiles, and show them side by side; takes minutes for each."""
    output = Output(json, html_file=report, quiet=quiet)
    asked = [ask(model, name, None, None, None, dtype, device, trust_remote_code) for name in names_in(profiles)]

    from inference_pio.integration.many_profiles import ManyProfiles

    bars = Bars(quiet)
    run = ManyProfiles(asked, bars)
    for plan in run.plan(open_shown(asked[0], quiet)):
        output.show(str(plan))
    with bars:
        found = run.measure()
    output.show("")
    output.show(found.to_table())
    output.finish(found.to_json())


def names_in(text: str) -> list[str]:
    """The names in `a,b,c`.

    >>> names_in("lossless, balanced")
    ['lossless', 'balanced']
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise typer.BadParameter(f"{text!r} is not a list of names such as lossless,balanced.", param_hint="--profiles")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise typer.BadParameter(f"{', '.join(twice)} is given twice.", param_hint="--profiles")
    return names
