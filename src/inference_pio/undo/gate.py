"""Readers and writers: a model that computes is not edited, a model that is edited does not compute."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from inference_pio.errors import ModelBusy


class Gate:
    """Any number of readers (`forward`, `generate`) or one writer (an edit); both may enter again from inside.

    A writer that waits goes before readers that come after it, or calls that overlap would keep it out for ever.

    >>> gate = Gate()
    >>> with gate.reading(), gate.reading():
    ...     pass
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers: dict[object, int] = {}  # one entry for each entry through the gate: its thread
        self._writers: dict[object, int] = {}
        self._waiting: dict[object, int] = {}

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Count this thread as a reader; waits while another thread edits or has waited longer to edit."""
        me, entry = threading.get_ident(), object()
        try:
            with self._changed:
                if me not in self._readers.values():
                    while (self._writers or self._waiting) and me not in self._writers.values():
                        self._changed.wait()
                self._readers[entry] = me
            yield
        finally:
            self._leave(self._readers, entry)

    @contextmanager
    def writing(self, timeout_s: float) -> Iterator[None]:
        """Edit alone. Raises ModelBusy from inside a reader at once, else after `timeout_s` seconds of waiting."""
        me, entry = threading.get_ident(), object()
        try:
            with self._changed:
                if me in self._readers.values() and me not in self._writers.values():
                    raise ModelBusy(
                        "this thread is inside the model's own forward or generate: "
                        "an edit from there would pull the floor away. Edit it after the call has returned."
                    )
                self._waiting[entry] = me
                self._wait_for_all_others(me, timeout_s)
                self._writers[entry] = me
                del self._waiting[entry]
            yield
        finally:
            self._leave(self._waiting, entry)
            self._leave(self._writers, entry)

    def _wait_for_all_others(self, me: int, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while any(other != me for table in (self._readers, self._writers) for other in table.values()):
            left_s = min(deadline - time.monotonic(), threading.TIMEOUT_MAX)
            if left_s <= 0:
                raise ModelBusy(
                    f"the model was still computing in another thread after {timeout_s:g} s. "
                    "Wait for that call to return, or give a longer timeout_s."
                )
            self._changed.wait(left_s)

    def _leave(self, table: dict[object, int], entry: object) -> None:
        """Take an entry out and wake the others; a Ctrl-C here is held until that is done."""
        interrupted: KeyboardInterrupt | None = None
        while entry in table:
            try:
                with self._changed:
                    self._changed.notify_all()
                    table.pop(entry, None)
            except KeyboardInterrupt as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted
