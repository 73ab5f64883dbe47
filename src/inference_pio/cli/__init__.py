"""`pio`, the command line: one small file a command; it asks and prints, and decides nothing."""

from __future__ import annotations

import io
import sys
from typing import TextIO

from inference_pio.cli.app import app

__all__ = ["app", "main"]


def main() -> None:
    """The entry point of the script `pio`."""
    say_anything(sys.stdout, sys.stderr)
    app()


def say_anything(*streams: TextIO) -> None:
    """Where a terminal has no sign for a character, its number is shown, and the command goes on."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
