"""The experts of one layer: addresses for all of them, memory for those that were chosen last."""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch

from inference_pio.streaming.pieces import Piece
from inference_pio.streaming.reader import Reader
from inference_pio.streaming.slot import Slot
from inference_pio.streaming.units import Unit

PAGE = mmap.PAGESIZE


class ExpertCache(Slot):
    """Experts keep their numbers, so that whatever computes with them needs to know nothing; memory is taken by pages.

    The least recently used go first. A call that chooses more experts than are kept (a prompt) has all of them while it
    computes, and does not push out those that were there before.
    """

    def __init__(self, number: int, unit: Unit, pieces: Sequence[Piece], experts: int, capacity: int) -> None:
        self._memory = mmap.mmap(-1, unit.room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.experts, self.capacity = experts, capacity
        self._parts = [(region.at, region.nbytes // experts) for region in unit.regions]
        self._pieces: list[list[Piece]] = [[] for _ in range(experts)]
        for piece in pieces:
            at, part = max((one for one in self._parts if one[0] <= piece.at), key=lambda one: one[0])
            self._pieces[(piece.at - at) // part].append(piece)
        self._held: OrderedDict[int, None] = OrderedDict()
        self._bringing = threading.Lock()
        super().__init__(unit.room, [unit])
        self.unit = number

    def _room(self, nbytes: int) -> torch.Tensor:
        return torch.frombuffer(self._memory, dtype=torch.uint8)

    def bring(self, chosen: Iterable[int], reader: Reader) -> tuple[int, int, int]:
        """Wait until the chosen experts are there; hits, misses and bytes read. Raises StreamError."""
        wanted = sorted({number for number in chosen if 0 <= number < self.experts})
        with self._bringing:
            missing = [number for number in wanted if number not in self._held]
            pieces = [piece for number in missing for piece in self._pieces[number]]
            reader.start(pieces, self.bytes).wait()
            for number in wanted:
                if number in missing:
                    self._held[number] = None
                if number not in missing or len(wanted) <= self.capacity:
                    self._held.move_to_end(number)
                else:
                    self._held.move_to_end(number, last=False)
        return len(wanted) - len(missing), len(missing), sum(piece.nbytes for piece in pieces)

    def shown(self) -> list[torch.Tensor]:
        """The experts' tensors; those that are not there are empty pages in them."""
        return self._shown[0]

    def left(self) -> None:
        """Nobody computes with them: those beyond the capacity leave memory."""
        while not self.users and len(self._held) > self.capacity:
            number, _ = self._held.popitem(last=False)
            for at, part in self._parts:
                first, last = -(-(at + number * part) // PAGE) * PAGE, (at + (number + 1) * part) // PAGE * PAGE
                if last > first:
                    self._memory.madvise(mmap.MADV_DONTNEED, first, last - first)
