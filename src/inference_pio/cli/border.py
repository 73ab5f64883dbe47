"""The border of every command: typed errors become one line and an exit code, and a bare `--json` means `-`."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from inference_pio.errors import InferencePioError

FAILED, TARGETS_MISSED, MISTAKE_OF_OURS, INTERRUPTED = 1, 3, 70, 130
"""Exit codes beside 0, all well, and 2, wrong usage."""
OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")  # torch's own is told by its name: torch may not be loaded


class Command(TyperCommand):
    """A command whose errors are told in one line, without a traceback unless `--debug` asks for it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, with_bare_json(args))

    def invoke(self, ctx: Any) -> Any:
        debug = bool(ctx.params.get("debug"))
        try:
            with _log_shown(debug):
                return super().invoke(ctx)
        except InferencePioError as error:
            raise _told(error, str(error), FAILED, debug) from error
        except KeyboardInterrupt as error:
            raise _told(error, "interrupted; nothing partial was kept", INTERRUPTED, debug) from error
        except Exception as error:
            if _is_for_typer(error):
                raise
            raise _told(error, *_unforeseen(error, debug), debug) from error


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


@contextmanager
def _log_shown(debug: bool) -> Iterator[None]:
    """Inside, what the library logs goes to standard error: warnings, or with `--debug` everything."""
    log, handler = logging.getLogger("inference_pio"), logging.StreamHandler()
    before = log.level, log.handlers, log.propagate
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    log.setLevel(logging.DEBUG if debug else logging.WARNING)
    log.handlers, log.propagate = [handler], False
    try:
        yield
    finally:
        log.setLevel(before[0])
        log.handlers, log.propagate = before[1:]


def _is_for_typer(error: Exception) -> bool:
    """Wrong usage, exits and broken pipes: typer has words and codes for them."""
    return isinstance(error, typer.Exit | typer.Abort | BrokenPipeError) or hasattr(error, "exit_code")


def _unforeseen(error: Exception, debug: bool) -> tuple[str, int]:
    if type(error).__name__ in OUT_OF_MEMORY:
        return f"out of memory ({_first_line(error)}): take a smaller model or --dtype.", FAILED
    way_out = "" if debug else " Run the same with --debug and report what it prints."
    said = f"{type(error).__name__}: {_first_line(error)}"
    return f"this should not happen, and is a mistake of inference-pio ({said}).{way_out}", MISTAKE_OF_OURS


def _told(error: BaseException, text: str, code: int, debug: bool) -> typer.Exit:
    """Print one line on standard error; the answer is to be raised."""
    console = Console(stderr=True)
    if debug:
        console.print("".join(traceback.format_exception(error)), markup=False, highlight=False, soft_wrap=True, end="")
    console.print("error:", style="bold red", end=" ")
    console.print(" ".join(text.split()), markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(code)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
