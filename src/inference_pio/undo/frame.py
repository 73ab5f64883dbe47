"""One step's edits: what it wrote, what it read, and so what stands on what."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from inference_pio.errors import VaultError
from inference_pio.undo.interrupts import held_back
from inference_pio.undo.places import chain
from inference_pio.undo.slots import MappingWrite, Slot, Write
from inference_pio.undo.tensors import Park, PutAway, Rehouse

logger = logging.getLogger("inference_pio")
HOLD_TENSORS = frozenset({"parameter", "buffer", "module"})
MOST_INTERRUPTIONS = 16  # nobody presses Ctrl-C that often: a write that raises it each time is put off, as others are


@dataclass(eq=False)
class Frame:
    """The remembered writes of one step, in order."""

    name: str
    entries: list[Write] = field(default_factory=list)
    reads: set[Slot] = field(default_factory=set)
    watched_modules: set[str] = field(default_factory=set)
    watched_trees: set[str] = field(default_factory=set)
    deferred: list[Callable[[], object]] = field(default_factory=list)
    kept_in_place_bytes: int = 0

    @property
    def writes(self) -> set[Slot]:
        moved = {slot for entry in self.entries if isinstance(entry, Rehouse | PutAway) for slot in entry.others}
        return moved | {entry.slot for entry in self.entries}

    @property
    def moves_bytes(self) -> bool:
        """Whether it may have changed which tensors the model holds, or where they lie; settings and hooks do not."""
        return any(
            not isinstance(entry, MappingWrite) or entry.slot.table in HOLD_TENSORS or not entry.slot.owner
            for entry in self.entries
        )

    @property
    def held_bytes(self) -> int:
        """Memory (host or device, not disk) that this step's originals take while it stands."""
        return self.kept_in_place_bytes + sum(entry.held_bytes for entry in self.entries if isinstance(entry, Park))

    @property
    def parked_bytes(self) -> int:
        """Bytes of originals that wait on disk or in the checkpoint."""
        return sum(entry.nbytes - entry.held_bytes for entry in self.entries if isinstance(entry, Park))

    def watch(self, path: str, whole: bool) -> None:
        """Note that this step looked at the module at a path (`whole`: and at its children and all below)."""
        self.reads |= chain(path)
        (self.watched_trees if whole else self.watched_modules).add(path)

    def stands_on(self, earlier: Frame) -> bool:
        """Whether this step wrote or read a slot that an earlier one wrote."""
        return any(slot in self.reads or self._watches(slot) for slot in earlier.writes) or bool(
            self.writes & earlier.writes
        )

    def commutes_with(self, other: Frame) -> bool:
        """Whether the two steps give the same model in either order."""
        return not self.stands_on(other) and not other.stands_on(self)

    def unwind(self, mark: int = 0) -> None:
        """Take the writes back to a mark, last first and for good; nothing stops it halfway.

        A write that cannot be taken back at once (no memory yet) is tried again after all others. Raises VaultError
        if it still cannot, and a Ctrl-C that came in between, when all is done.
        """
        put_off: list[Write] = []
        interrupted: KeyboardInterrupt | None = None
        interruptions = 0
        with held_back():
            while len(self.entries) > mark:
                try:
                    _take_back(self.entries[-1])
                except KeyboardInterrupt as error:
                    interrupted, interruptions = error, interruptions + 1
                    if interruptions < MOST_INTERRUPTIONS:
                        continue
                    put_off.append(self.entries[-1])
                except Exception:
                    put_off.append(self.entries[-1])
                self.entries.pop()
            failed = [told for entry in put_off if (told := _second_try(entry)) is not None]
        if failed:
            raise failed[0]
        if interrupted is not None:
            raise interrupted

    def settle(self) -> None:
        """The step stands for good: what was parked only for the case of its failure may go."""
        for entry in self.entries:
            if isinstance(entry, Park):
                entry.parked.settle()

    def close(self) -> None:
        """The step stands no more: let go of what it had parked, and end what it had opened."""
        for entry in self.entries:
            if isinstance(entry, Park):
                entry.parked.discard()
            if isinstance(entry, Park | Rehouse):
                entry.release()
        self.entries.clear()
        self.end_deferred()

    def end_deferred(self, mark: int = 0) -> None:
        """Call what `defer` was given, last first; one that fails is logged and does not stop the others."""
        while len(self.deferred) > mark:
            end = self.deferred.pop()
            try:
                end()
            except Exception:
                logger.exception("%s was taken back, but something that it had opened could not be closed.", self.name)

    def _watches(self, slot: Slot) -> bool:
        owner = slot.owner
        if owner in self.watched_modules and slot.table != "module":  # its own attributes; its children are others
            return True
        if not self.watched_trees:
            return False
        names = owner.split(".") if owner else []
        return any(".".join(names[:depth]) in self.watched_trees for depth in range(len(names) + 1))


def _take_back(entry: Write) -> None:
    entry.undo()
    if isinstance(entry, Park):
        entry.parked.discard()
        entry.release()


def _second_try(entry: Write) -> VaultError | None:
    try:
        _take_back(entry)
    except (Exception, KeyboardInterrupt) as error:
        told = VaultError(
            f"{entry.slot} could not be brought back after a step had failed ({error}): the model is not whole. "
            "Load it anew."
        )
        told.__cause__ = error
        return told
    return None
