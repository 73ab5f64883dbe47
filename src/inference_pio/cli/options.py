"""The options that commands share, and what they ask for."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inference_pio.cli import completion
from inference_pio.cli.profile_file import profile_named

if TYPE_CHECKING:
    from inference_pio.integration.asked import Asked

Model = Annotated[str, typer.Argument(help="A folder, a .gguf file, a hub id, or 'demo'.", metavar="MODEL")]
Profile = Annotated[
    str,
    typer.Option(
        help="The profile to apply: a name (`pio list profiles` shows them), or a YAML or JSON file of your own.",
        metavar="NAME|FILE",
        autocompletion=completion.profiles,
    ),
]
Enable = Annotated[
    list[str] | None,
    typer.Option(
        help="Also apply this one, or fail (repeatable).", metavar="NAME", autocompletion=completion.optimizations
    ),
]
Disable = Annotated[
    list[str] | None,
    typer.Option(help="Leave this one out (repeatable).", metavar="NAME", autocompletion=completion.optimizations),
]
Assign = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Set a parameter of an optimization, and apply it or fail.", metavar="NAME.KEY=VALUE",
        autocompletion=completion.assignments,
    ),
]  # fmt: skip
Device = Annotated[str | None, typer.Option(help="Where to run, as torch calls it: cpu, cuda, cuda:1.")]
Hardware = Annotated[
    str | None,
    typer.Option(
        help="The class of hardware to choose the profile's members for; else that of the device (`pio doctor`).",
        metavar="CLASS", autocompletion=completion.hardware_classes,
    ),
]  # fmt: skip
MostKL = Annotated[
    float | None,
    typer.Option("--max-kl", help="Take back members until the divergence on held-out text is at most this, in nats a "
                 "token.", metavar="NATS"),
]  # fmt: skip
MostPerplexity = Annotated[
    float | None,
    typer.Option("--max-perplexity-ratio", help="Take back members until the perplexity on held-out text is at most "
                 "this many times the plain model's.", metavar="RATIO"),
]  # fmt: skip
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model; off unless given.")
]
GpuBudget = Annotated[
    str | None,
    typer.Option("--gpu-budget", help="Memory of the GPU that weights may take: 12GB, 40%.", metavar="SIZE"),
]
HostBudget = Annotated[
    str | None,
    typer.Option(
        "--host-budget",
        help="Memory of the host that weights may take, or wait in for a GPU: 4GB, 40%.",
        metavar="SIZE",
    ),
]
Json = Annotated[
    str | None,
    typer.Option("--json", help="Write the result as JSON to this file; alone or as -: to stdout.", metavar="[FILE]"),
]
HtmlFile = Annotated[
    Path | None, typer.Option("--report", help="Write the result as one HTML page to this file.", metavar="FILE")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors; files and JSON are written.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the library's log, and tracebacks of errors.")]
_ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z]\w*)\.(?P<key>[A-Za-z]\w*)=(?P<value>.*)", re.DOTALL)
_WORDS = {"true": True, "false": False, "none": None, "null": None}


class Dtype(StrEnum):
    """What the plain model computes in; auto is what its weights are stored in."""

    bfloat16 = "bfloat16"
    float32 = "float32"
    auto = "auto"


DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="The dtype to load in; auto: as stored.")]


def ask(
    model: str, profile: str, enable: list[str] | None, disable: list[str] | None, assign: list[str] | None,
    dtype: Dtype, device: str | None, trust_remote_code: bool = False, *, hardware: str | None = None,
    max_kl: float | None = None, max_perplexity_ratio: float | None = None,
) -> Asked:  # fmt: skip
    """What the options ask for, checked; loads torch. Raises UnknownName, InvalidSetting, typer.BadParameter."""
    parameters = assignments(assign or [])

    import torch

    from inference_pio.configuration import QualityBounds
    from inference_pio.integration.asked import Asked
    from inference_pio.integration.targets import Changes

    return Asked(
        model, profile_named(profile), Changes(tuple(enable or ()), tuple(disable or ()), parameters),
        "auto" if dtype is Dtype.auto else getattr(torch, dtype.value), device, trust_remote_code,
        hardware, QualityBounds(max_kl=max_kl, max_perplexity_ratio=max_perplexity_ratio),
    )  # fmt: skip


def given(context: typer.Context, names: tuple[str, ...]) -> list[str]:
    """Those of some options that stand on the command line: none is passed over in silence."""
    sources = {one.opts[0]: context.get_parameter_source(one.name or "") for one in context.command.params
               if one.name in names}  # fmt: skip
    return [option for option, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def assignments(given: list[str]) -> dict[str, dict[str, Any]]:
    """`name.key=value` as parameters by name; a value is read as JSON where it is JSON, else as a word.

    >>> assignments(["tensor_compression.format=int8", "flash_attention.use_triton=true"])
    {'tensor_compression': {'format': 'int8'}, 'flash_attention': {'use_triton': True}}
    """
    parameters: dict[str, dict[str, Any]] = {}
    for text in given:
        found = _ASSIGNMENT.fullmatch(text)
        if found is None:
            raise typer.BadParameter(f"{text!r} is not of the form NAME.KEY=VALUE.", param_hint="--set")
        own = parameters.setdefault(found["name"], {})
        if found["key"] in own:
            raise typer.BadParameter(f"{found['name']}.{found['key']} is given twice.", param_hint="--set")
        own[found["key"]] = _value(found["value"])
    return parameters


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
