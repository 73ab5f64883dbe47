"""`pio doctor`: what this machine is, which fast paths it has, and what it can do at best."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from inference_pio.cli.bars import Bars
from inference_pio.cli.options import Debug, Device, Json, Quiet
from inference_pio.cli.output import Output

Measure = Annotated[bool, typer.Option("--measure/--no-measure", help="Measure ceilings, which takes seconds.")]


def doctor(
    device: Device = None, measure: Measure = True, json: Json = None, quiet: Quiet = False, debug: Debug = False
) -> None:
    """Look at this machine: hardware, versions, backends, and the ceilings that any model's figures stay below."""
    output = Output(json, quiet=quiet)

    from inference_pio.measure import describe_machine
    from inference_pio.measure.backends import find_backends, memory_of, usable_device
    from inference_pio.measure.hardware import hardware_of

    target = usable_device(device)
    data: dict[str, Any] = {
        "machine": describe_machine(target).to_json(),
        "memory": memory_of(target),
        "hardware": hardware_of(target).to_json(),
        "backends": [backend.to_json() for backend in find_backends()],
        "optimizations": _optimizations(),
    }
    output.show(_machine(data))
    output.show(_backends([*data["backends"], *data["optimizations"]]))
    if measure:
        data["ceilings"] = _ceilings(target, quiet)
        output.show(_ceiling_table(data["ceilings"]))
    output.finish(data)


def _optimizations() -> list[dict[str, Any]]:
    from inference_pio.manager import get_optimization_manager

    return [
        {"name": cls.name, "missing": cls.unavailable(), "serves": cls.summary}
        for cls in get_optimization_manager().registry
    ]


def _ceilings(device: Any, quiet: bool) -> list[dict[str, Any]]:
    from inference_pio.measure.ceilings import measure_ceilings

    with Bars(quiet) as bars:
        return [ceiling.to_json() for ceiling in measure_ceilings(device, progress=bars("measuring"))]


def _machine(data: dict[str, Any]) -> Table:
    table = Table(title="machine", title_justify="left", show_header=False)
    told = f"{data['hardware']['name']} ({data['hardware']['why']})"
    facts = {**data["machine"], **data["machine"]["versions"], **data["memory"], "hardware class": told}
    for name, value in facts.items():
        if name != "versions" and value is not None:
            told = f"{value / 1e9:.1f} GB" if name.endswith("_bytes") else str(value)
            table.add_row(name.removesuffix("_bytes").replace("_", " "), told)
    return table


def _backends(rows: list[dict[str, Any]]) -> Table:
    table = Table("", "here", "serves", title="backends and optimizations", title_justify="left")
    for row in rows:
        table.add_row(row["name"], "yes" if row["missing"] is None else f"no: {row['missing']}", row["serves"])
    return table


def _ceiling_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("", "best", "how", title="ceilings", title_justify="left")
    for row in rows:
        value = "not measured" if row["value"] is None else f"{row['value']:.3g} {row['unit']}"
        table.add_row(row["name"], value, row["method"])
    return table
