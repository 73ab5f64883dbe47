"""The border of every command: typed errors become one line and an exit code, and a bare `--json` means `-`."""

from __future__ import annotations

import os
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from inference_pio.errors import InferencePioError

FAILED, INTERRUPTED = 1, 130
OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")  # torch's own is told by its name: torch may not be loaded


class Command(TyperCommand):
    """A command whose errors are told without a traceback: exit code 1, or 130 after Ctrl-C; wrong usage is 2."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, with_bare_json(args))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InferencePioError as error:
            raise _told(str(error), FAILED) from error
        except KeyboardInterrupt as error:
            raise _told("interrupted; nothing partial was kept", INTERRUPTED) from error
        except Exception as error:
            if type(error).__name__ not in OUT_OF_MEMORY:
                raise
            raise _told(f"out of memory ({_first_line(error)}): take a smaller model or --dtype.", FAILED) from error


def with_bare_json(args: list[str]) -> list[str]:
    """Put `-` behind a `--json` that names no file; a file's name has a dot or a slash in it.

    >>> with_bare_json(["--json", "profiles"]), with_bare_json(["--json", "out.json"])
    (['--json', '-', 'profiles'], ['--json', 'out.json'])
    """
    completed: list[str] = []
    for place, word in enumerate(args):
        completed.append(word)
        if word == "--json" and not _is_file_name(args[place + 1] if place + 1 < len(args) else ""):
            completed.append("-")
    return completed


def _is_file_name(word: str) -> bool:
    return word == "-" or (not word.startswith("-") and any(mark in word for mark in {".", "/", os.sep}))


def _told(text: str, code: int) -> typer.Exit:
    """Print one line on standard error; the answer is to be raised."""
    console = Console(stderr=True)
    console.print("error:", style="bold red", end=" ")
    console.print(" ".join(text.split()), markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(code)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
