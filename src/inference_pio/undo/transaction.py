"""Taking frames back in two phases, with a way forward again until it is committed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from inference_pio.undo.configs import OwnConfigs
from inference_pio.undo.drift import check_drift
from inference_pio.undo.frame import Frame
from inference_pio.undo.interrupts import held_back
from inference_pio.undo.journal import Journal
from inference_pio.undo.tensors import Park, Rehouse

OnDrift = Literal["raise", "discard"]


class Transaction:
    """A few frames taken back and a few new ones made, as one: `commit` it, or `rollback` to how it was.

    The frames are kept, not forgotten, until `commit`: each write can be done again.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._undone: list[Frame] = []
        self._gradients = torch.is_grad_enabled()
        self._remember()

    def check(self, frames: Sequence[Frame], owned: OwnConfigs | None = None) -> None:
        """Raise ModelDrift where somebody else has written what these frames would take back."""
        check_drift(self.journal, self._last_first(frames), owned)

    def undo(self, frames: Sequence[Frame], on_drift: OnDrift = "raise", owned: OwnConfigs | None = None) -> None:
        """Phase one: check drift, fetch and verify. Phase two: rebind. A failure leaves everything as it was."""
        ordered = self._last_first(frames)
        if on_drift == "raise":
            check_drift(self.journal, ordered, owned)
        mark, standing = len(self._undone), list(self.journal.frames)
        try:
            for entry in _with_bytes(ordered):
                entry.prepare()
            with held_back():
                for frame in ordered:
                    self._undone.append(frame)
                    for write in reversed(frame.entries):
                        write.undo()
                    self.journal.frames[:] = [one for one in self.journal.frames if one is not frame]
        except BaseException:
            with held_back():
                self._redo(mark)
                self.journal.frames[:] = standing
                for entry in _with_bytes(ordered):
                    entry.release()
            raise

    def rollback(self) -> None:
        """Unwind what is new, then do again what was taken back: the model is as before the transaction.

        So is torch's gradient mode, which a Ctrl-C between the opening of a `no_grad` and its `with` leaves off.
        """
        torch.set_grad_enabled(self._gradients)
        problems: list[BaseException] = []
        with held_back():
            for frame in reversed([frame for frame in self.journal.frames if frame not in self._frames_before]):
                problems += _unwind(frame)
                frame.close()
            self._redo(0)
            problems += _unwind(self.journal.base, self._base_mark)
            self.journal.frames[:] = self._frames_before
        if problems:
            raise problems[0]

    def commit(self) -> None:
        """Let go of what the frames taken back had parked, and close what they had opened.

        A `rollback` after this changes nothing; a Ctrl-C in between comes when all is done.
        """
        with held_back():
            for frame in self.journal.frames:
                if frame not in self._frames_before:
                    frame.settle()
            for frame in self._undone:
                frame.close()
            self._undone.clear()
            self._remember()

    def _last_first(self, frames: Sequence[Frame]) -> list[Frame]:
        ordered = [frame for frame in reversed(self.journal.frames) if frame in frames]
        return ordered + [self.journal.base] * (self.journal.base in frames)

    def _remember(self) -> None:
        self._frames_before = list(self.journal.frames)
        self._base_mark = len(self.journal.base.entries)

    def _redo(self, mark: int) -> None:
        while len(self._undone) > mark:
            for entry in self._undone[-1].entries:
                entry.redo()
            self._undone.pop()


def _with_bytes(frames: Sequence[Frame]) -> list[Park | Rehouse]:
    return [entry for frame in frames for entry in frame.entries if isinstance(entry, Park | Rehouse)]


def _unwind(frame: Frame, mark: int = 0) -> list[BaseException]:
    try:
        frame.unwind(mark)
    except BaseException as error:
        return [error]
    return []
