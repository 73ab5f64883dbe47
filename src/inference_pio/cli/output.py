"""Where a command's words and data go; what cannot be written is told before the work begins."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, RenderableType

from inference_pio.errors import InvalidSetting, StorageError
from inference_pio.files import is_stream, storage_errors, write_atomically
from inference_pio.partials import partial_beside

UNSEEN_WIDTH = 120
"""Columns where nobody looks: a file or a pipe has no width of its own."""


class Output:
    """Words on standard output and data in files; where the JSON goes to standard output, the words go to the other.

    `quiet` drops the words. Raises StorageError at once for a file that cannot be written, InvalidSetting where two
    are one, MissingExtra where a page cannot be made.
    """

    def __init__(self, json_file: str | None = None, *, html_file: Path | None = None, quiet: bool = False) -> None:
        self._json_file, self._html_file, self.quiet = json_file, html_file, quiet
        if json_file not in (None, "-"):
            require_writable(Path(str(json_file)))
        if html_file is not None:
            _require_page(html_file, json_file)
        console = Console(stderr=json_file == "-")
        self._console = console if console.is_terminal else Console(stderr=console.stderr, width=UNSEEN_WIDTH)

    def show(self, renderable: RenderableType) -> None:
        """Print a table, or a text as it is."""
        if self.quiet:
            return
        with _stream_errors():
            self._console.print(renderable, markup=False, highlight=False, soft_wrap=isinstance(renderable, str))

    def warn(self, text: str) -> None:
        """Print what nobody may miss: on standard error where `quiet` drops the words."""
        if self.quiet:
            typer.echo(text, err=True)
        else:
            self.show(text)

    def stream(self, text: str) -> None:
        """Print a piece of a longer text at once; it is what was asked for, so `quiet` does not drop it."""
        with _stream_errors():
            self._console.file.write(text)
            self._console.file.flush()

    def finish(self, data: dict[str, Any]) -> None:
        """Write the data, where that was asked for: as a page, as JSON."""
        if self._html_file is not None:
            from inference_pio.measure.html.page import write_page

            write_page(self._html_file, data)
            self.show(f"report written to {self._html_file}")
        if self._json_file is None:
            return
        text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        raw = text.encode("utf-8", "backslashreplace")  # a file's name may hold what is no text
        if self._json_file == "-":
            with _stream_errors():
                typer.echo(raw.decode(), nl=False)
        else:
            write_atomically(self._json_file, raw)
            self.show(f"JSON written to {self._json_file}")


def require_writable(path: Path) -> None:
    """Raise StorageError unless a file could be made at `path`; nothing is left there."""
    with storage_errors(path):
        if path.is_dir():
            raise StorageError(f"cannot write {path}: it is a folder. Give the name of a file.")
        if is_stream(path):
            _require_writable_stream(path)
        else:
            _try_to_write(path.resolve() if path.is_symlink() else path)


def _require_writable_stream(path: Path) -> None:
    """A device or a pipe is asked, not opened: that could wait for a reader."""
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _require_page(html_file: Path, json_file: str | None) -> None:
    from inference_pio.measure.html.page import require_html

    if str(html_file) == "-":
        raise InvalidSetting("--report needs the name of a file, such as report.html: a page is not printed.")
    if json_file is not None and Path(json_file).absolute() == html_file.absolute():
        raise InvalidSetting(f"--json and --report both name {html_file}: give them two files.")
    require_writable(html_file)
    require_html()


def require_savable(folder: Path) -> None:
    """Raise unless a model could be saved to `folder`; nothing is left there."""
    from inference_pio.artifact.save import refuse_foreign

    refuse_foreign(folder)
    with storage_errors(folder):
        _try_to_write(folder)


def require_exportable(folder: Path) -> None:
    """Raise unless a checkpoint could be written to `folder`; nothing is left there."""
    from inference_pio.artifact.export import refuse_filled

    refuse_filled(folder)
    with storage_errors(folder):
        _try_to_write(folder)


def _try_to_write(path: Path) -> None:
    there = path.absolute().parent
    while not there.exists():
        there = there.parent
    attempt = partial_beside(there / path.name)
    try:
        attempt.touch(exist_ok=False)
    finally:
        attempt.unlink(missing_ok=True)


@contextmanager
def _stream_errors() -> Iterator[None]:
    """A full disk behind `pio ... > file` is told as any other; a pipe that nobody reads any more ends in silence."""
    try:
        with storage_errors("standard output"):
            yield
    except StorageError as error:
        if isinstance(error.__cause__, BrokenPipeError):
            raise error.__cause__ from None
        raise
