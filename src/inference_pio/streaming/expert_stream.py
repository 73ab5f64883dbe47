"""A stream of experts: each layer keeps those that were chosen last, and reads the others when they are chosen."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from inference_pio.streaming.expert_cache import ExpertCache
from inference_pio.streaming.pieces import Piece
from inference_pio.streaming.reader import Reader
from inference_pio.streaming.store import Store
from inference_pio.streaming.stream import Stream
from inference_pio.streaming.units import Unit


@dataclass
class ExpertCounts:
    """Calls of experts' modules, chosen experts that were in memory, those that were not, and what that cost."""

    calls: int = 0
    hits: int = 0
    misses: int = 0
    read_bytes: int = 0
    waited_s: float = 0.0


class ExpertStream(Stream):
    """Its units are the experts of one layer each; `capacity` of them stay in memory between calls."""

    def __init__(
        self, units: Sequence[Unit], pieces: Sequence[Sequence[Piece]], reader: Reader, experts: Sequence[int],
        capacity: int, store: Store | None = None,
    ) -> None:  # fmt: skip
        super().__init__(units, pieces, reader, 0, store)
        self.experts, self.capacity = list(experts), capacity
        self.chosen = ExpertCounts()
        self._caches = [
            ExpertCache(number, unit, own, count, min(capacity, count))
            for number, (unit, own, count) in enumerate(zip(units, pieces, experts, strict=True))
        ]

    def _twin(self, units: Sequence[Unit], reader: Reader, store: Store | None) -> Stream:
        return ExpertStream(units, self._pieces, reader, self.experts, self.capacity, store)

    @property
    def nbytes(self) -> int:
        """Memory that experts take: those that stay, and once all others of a layer, which a prompt may choose."""
        pairs = zip(self.units, self.experts, strict=True)
        each = [sum(tensor.nbytes for tensor in unit.tensors) // count for unit, count in pairs]
        return memory_of(each, self.experts, self.capacity)

    def bring(self, number: int, chosen: Iterable[int]) -> None:
        """Let the tensors of a layer's experts show the true values of the chosen ones. Raises StreamError."""
        self._reader.check_process()
        me, cache = threading.get_ident(), self._caches[number]
        with self._turn:
            self._forget(me)
            cache.users += 1
            self._inside[me] = number, cache
        start = time.perf_counter()
        try:
            hits, misses, nbytes = cache.bring(chosen, self._reader)
        except BaseException:
            self.leave(number)
            raise
        with self._turn:
            self.chosen.calls += 1
            self.chosen.hits += hits
            self.chosen.misses += misses
            self.chosen.read_bytes += nbytes
            self.chosen.waited_s += time.perf_counter() - start
            self._look(number)

    def leave(self, number: int) -> None:
        """The experts have computed: their tensors show stand-ins again, and those beyond the capacity go."""
        me = threading.get_ident()
        with self._turn:
            if me in self._inside and self._inside[me][0] == number:
                self._forget(me)

    def close(self) -> None:
        """End the threads and let the memory go."""
        super().close()
        self._caches.clear()

    def to_json(self) -> dict[str, Any]:
        """What it has done, as plain data."""
        counts = {**asdict(self.chosen), "waited_s": round(self.chosen.waited_s, 6)}
        return {"experts": counts, "kept_per_layer": self.capacity}


def memory_of(expert_bytes: Sequence[int], experts: Sequence[int], capacity: int) -> int:
    """What `capacity` experts a layer take, and once all others of the largest layer.

    >>> memory_of([10, 10], [8, 8], 2)
    100
    """
    kept = [min(capacity, count) for count in experts]
    pairs = list(zip(expert_bytes, experts, kept, strict=True))
    return sum(size * keep for size, _, keep in pairs) + max(size * (count - keep) for size, count, keep in pairs)


def most_kept(expert_bytes: Sequence[int], experts: Sequence[int], budget: int) -> int:
    """The most experts a layer that a budget has room for; 0 where it has room for none.

    >>> most_kept([10, 10], [8, 8], 115), most_kept([10], [8], 79)
    (3, 0)
    """
    fitting = [keep for keep in range(1, max(experts)) if memory_of(expert_bytes, experts, keep) <= budget]
    return max(fitting, default=0)
