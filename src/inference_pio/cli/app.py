"""The commands put together. Nothing here loads torch: each command imports what it needs when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

import inference_pio
from inference_pio.cli.border import Command
from inference_pio.cli.compare import compare
from inference_pio.cli.doctor import doctor
from inference_pio.cli.export import export
from inference_pio.cli.generate import generate
from inference_pio.cli.list import show_list
from inference_pio.cli.migrate import migrate
from inference_pio.cli.optimize import optimize
from inference_pio.cli.plan import plan

app = typer.Typer(
    name="pio",
    help="Switch optimizations on and off on a live language model: exactly undoable, measured step by step.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("list", cls=Command)(show_list)
app.command("plan", cls=Command)(plan)
app.command("optimize", cls=Command)(optimize)
app.command("generate", cls=Command)(generate)
app.command("export", cls=Command)(export)
app.command("compare", cls=Command)(compare)
app.command("doctor", cls=Command)(doctor)
app.command("migrate", cls=Command)(migrate)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"inference-pio {inference_pio.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    pass
