"""What docs/command-line.md says of the commands is what they are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from inference_pio.cli import app, border
from inference_pio.measure.html.page import TEMPLATES

PAGE = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]


def test_the_table_holds_every_command() -> None:
    told = re.findall(r"^\| `pio (\w+)", PAGE, flags=re.MULTILINE)
    assert told == [command.name for command in app.registered_commands]


@pytest.mark.parametrize("line", LINES)
def test_every_documented_call_is_right_usage(line: str) -> None:
    group = typer.main.get_command(app)
    pio, name, *words = shlex.split(line)
    assert pio == "pio"
    assert group.commands[name].make_context(name, words).params  # type: ignore[attr-defined]


def test_the_exit_codes_are_those_of_the_border() -> None:
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, flags=re.MULTILINE)}
    assert told == {0, 2, border.FAILED, border.TARGETS_MISSED, border.MISTAKE_OF_OURS, border.INTERRUPTED}


def test_the_template_and_its_assets_are_files_of_the_package() -> None:
    names = ["charts.html", "page.css", "page.html", "page.js", "steps.html"]
    assert sorted(path.name for path in TEMPLATES.iterdir()) == names
