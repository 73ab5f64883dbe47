"""The page put together: one file that asks for nothing else, and in which untrusted names are only ever text."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference_pio.errors import MissingExtra
from inference_pio.files import write_atomically

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


def require_html() -> None:
    """Raise MissingExtra where the page cannot be made; asked before long work begins."""
    _environment()


def render_page(data: Mapping[str, Any]) -> str:
    """The page of `Report.to_json()` or `ProfilesReport.to_json()`, also one that was read back from a file.

    Raises MissingExtra without Jinja2.
    """
    environment = _environment()

    from markupsafe import Markup

    from inference_pio.measure.html.view import View

    style, script = (_asset(name) for name in ("page.css", "page.js"))
    return environment.get_template("page.html").render(
        view=View.of(data), style=Markup(style), script=Markup(script), policy=_policy(style, script)
    )


def write_page(path: Path, data: Mapping[str, Any]) -> None:
    """Write the page whole or not at all. Raises StorageError where the place cannot be written."""
    write_atomically(path, render_page(data).encode("utf-8", "backslashreplace"))  # a name may hold what is no text


def _environment() -> Environment:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtra("jinja2", "report", "writing an HTML report") from error
    return Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """What the browser may do: our own style and script by their hashes, and nothing from anywhere else."""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
