"""`pio list`: the optimizations, families and profiles that there are."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.table import Table

from inference_pio.cli.options import Debug, Json, Quiet
from inference_pio.cli.output import Output


class Kind(StrEnum):
    """What can be listed."""

    optimizations = "optimizations"
    families = "families"
    profiles = "profiles"


def show_list(
    kind: Annotated[Kind | None, typer.Argument(help="What to list; all three, if not given.")] = None,
    json: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List the optimizations, families and profiles that there are, and what is available on this machine."""
    output = Output(json, quiet=quiet)
    readers = {Kind.optimizations: _optimizations, Kind.families: _families, Kind.profiles: _profiles}
    data: dict[str, Any] = {}
    for one in [kind] if kind else list(Kind):
        data[one.value] = readers[one]()
        output.show(_table(one.value, data[one.value]))
    output.finish(data)


def _optimizations() -> list[dict[str, Any]]:
    from inference_pio.manager import get_optimization_manager

    return [
        {
            "name": cls.name,
            "type": cls.optimization_type.value,
            "stage": cls.stage.name.lower(),
            "exactness": cls.exactness,
            "summary": cls.summary,
            "available_here": cls.unavailable() or "yes",
        }
        for cls in get_optimization_manager().registry
    ]


def _families() -> list[dict[str, Any]]:
    from inference_pio.configuration import ModelFamily, get_config_manager

    manager = get_config_manager()
    return [
        {
            "name": name,
            "optimizations": [member.name for member in manager.get_family_config(name).optimizations],
            "model_types": ModelFamily.of(name).model_types,
        }
        for name in manager.list_families()
    ]


def _profiles() -> list[dict[str, Any]]:
    from inference_pio.configuration import get_config_manager

    profiles = map(get_config_manager().get_profile, get_config_manager().list_profiles())
    return [{"name": one.name, "members": one.default_settings, "description": one.description} for one in profiles]


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", show_lines=True)
    for column in rows[0]:
        table.add_column(column.replace("_", " "), overflow="fold")  # a name cut short cannot be typed again
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(_member(name, settings) for name, settings in value.items())
    return ", ".join(value) or "none" if isinstance(value, list) else str(value)


def _member(name: str, settings: dict[str, Any]) -> str:
    told = ", ".join(f"{key}={value}" for key, value in settings.items())
    return f"{name} ({told})" if told else name
