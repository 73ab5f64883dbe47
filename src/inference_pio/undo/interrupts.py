"""A Ctrl-C that comes while a model is being put back waits until it is back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def held_back() -> Iterator[None]:
    """Keep a Ctrl-C for the end of the block; then it is given to whom it was meant for.

    Only the main thread gets any, so elsewhere there is nothing to hold.
    """
    meant_for = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(meant_for):
        yield
        return
    pressed: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: pressed.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, meant_for)
        if pressed:
            meant_for(*pressed[-1])
