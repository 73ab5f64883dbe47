"""What a long wait shows, on standard error, so that a command's own output stays clean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)


def say(line: str, shown: bool = True) -> None:
    """Print one line, unless `shown` is False."""
    if shown:
        Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def byte_bar(title: str, total_bytes: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar of bytes; call what it yields with the bytes that are there so far."""
    with _progress(shown, DownloadColumn(), TransferSpeedColumn()) as progress:
        task = progress.add_task(title, total=total_bytes)
        yield lambda done_bytes: progress.update(task, completed=min(done_bytes, total_bytes))


@contextmanager
def phase_bar(title: str, phases: int, shown: bool) -> Iterator[Callable[[str], None]]:
    """A bar of named phases; call what it yields with the name of the phase that begins."""
    with _progress(shown) as progress:
        task = progress.add_task(title, total=phases)
        begun = 0

        def begin(phase: str) -> None:
            nonlocal begun
            progress.update(task, description=f"{title}: {phase}", completed=begun)
            begun += 1

        yield begin
        progress.update(task, description=title, completed=phases)


@contextmanager
def share_bar(title: str, shown: bool) -> Iterator[Callable[[str, float], None]]:
    """A bar of stages that tell how far they are; call what it yields with a stage and its share from 0 to 1."""
    with _progress(shown) as progress:
        task = progress.add_task(title, total=1.0)
        yield lambda stage, share: progress.update(task, description=f"{title}: {stage}", completed=share)


def _progress(shown: bool, *columns: ProgressColumn) -> Progress:
    # bound to today's standard error: a library silenced by redirection must not silence the bar
    console = Console(file=Console(stderr=True).file)
    return Progress(
        TextColumn("{task.description}"), BarColumn(), *columns, TimeElapsedColumn(), console=console, disable=not shown
    )
