"""Progress bars over the stages of a measurement, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class Bars:
    """One bar a stage: `bars("plain float32")` begins it and answers with what is told of its progress.

    A stage has phases that each run from 0 to 1: its bar is full when the next stage begins.
    """

    def __init__(self, quiet: bool = False) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), disable=quiet)
        self._running: TaskID | None = None

    def __call__(self, stage: str) -> Callable[[str, float], None]:
        self._end_stage()
        task = self._running = self._progress.add_task(stage, total=1.0)

        def told(phase: str, fraction: float) -> None:
            self._progress.update(task, description=f"{stage}: {phase}", completed=min(fraction, 0.999))

        return told

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._end_stage()
        self._progress.stop()

    def _end_stage(self) -> None:
        if self._running is not None:
            self._progress.update(self._running, completed=1.0)


@contextmanager
def working(text: str, quiet: bool = False) -> Iterator[None]:
    """Shows that something without an end in sight goes on, and for how long; only where somebody looks."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    shown = console.is_terminal and not quiet
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        progress.add_task(escape(text), total=None)
        yield
