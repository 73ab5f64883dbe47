"""Readers and writers: a model that computes is not edited, a model that is edited does not compute."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from inference_pio.errors import ModelBusy

READS, WAITS, WRITES = "reads", "waits", "writes"
LOOK_AGAIN_S = 1.0  # should a Ctrl-C have eaten the call that wakes those who wait

INSIDE = (
    "this thread is inside the model's own forward or generate: "
    "an edit from there would pull the floor away. Edit it after the call has returned."
)


def still_computing(timeout_s: float) -> str:
    """Why an edit was given up after waiting."""
    return (
        f"the model was still computing in another thread after {timeout_s:g} s. "
        "Wait for that call to return, or give a longer timeout_s."
    )


class Gate:
    """Any number of readers (`forward`, `generate`) or one writer (an edit); both may enter again from inside.

    A writer that waits goes before readers that come after it, or calls that overlap would keep it out for ever.

    >>> gate = Gate()
    >>> with gate.reading(), gate.reading():
    ...     pass
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._visits: dict[object, tuple[str, int]] = {}  # what each visitor is doing, and its thread

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Count this thread as a reader; waits while another thread edits or has waited longer to edit."""
        me, visit = threading.get_ident(), object()
        try:
            with self._changed:
                while not self._threads(READS, WRITES) & {me} and self._threads(WAITS, WRITES):
                    self._changed.wait(LOOK_AGAIN_S)
                self._visits[visit] = READS, me
            yield
        finally:
            self._visits.pop(visit, None)  # one call of C first: a Ctrl-C cannot come before it
            self._wake()

    @contextmanager
    def writing(self, timeout_s: float) -> Iterator[None]:
        """Edit alone. Raises ModelBusy from inside a reader at once, else after `timeout_s` seconds of waiting."""
        me, visit = threading.get_ident(), object()
        try:
            with self._changed:
                if me in self._threads(READS) - self._threads(WRITES):
                    raise ModelBusy(INSIDE)
                self._visits[visit] = WAITS, me
                self._wait_for_all_others(me, timeout_s)
                self._visits[visit] = WRITES, me
            yield
        finally:
            self._visits.pop(visit, None)
            self._wake()

    def _threads(self, *doing: str) -> set[int]:
        return {thread for what, thread in self._visits.copy().values() if what in doing}

    def _wait_for_all_others(self, me: int, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self._threads(READS, WRITES) - {me}:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise ModelBusy(still_computing(timeout_s))
            self._changed.wait(min(left_s, LOOK_AGAIN_S))

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
