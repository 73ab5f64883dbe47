"""The rows that watched layers are given during one forward, each tensor counted once however many layers read it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Set

from torch import Tensor

from inference_pio.calibration.input_statistics import InputStatistics

MOST_RECENT = 4
"""Tensors that are held to see whether the next layer is given one of them again: q, k and v follow each other."""


class SharingChanged(Exception):
    """Layers that were given one tensor in one forward are given two in the next."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class Rows:
    """Adds what hooks report to the statistics; `begin` and `end` frame one forward. Layers in `apart` never share."""

    def __init__(self, gram: bool, apart: Set[str] = frozenset()) -> None:
        self.gram = gram
        self.seen: set[str] = set()
        self.calls: Counter[str] = Counter()
        self._apart = apart
        self._true_rows: Tensor | None = None
        self._recent: deque[tuple[Tensor, int, str]] = deque(maxlen=MOST_RECENT)
        self._leader: dict[str, str] = {}
        self._sums: dict[str, InputStatistics] = {}

    def begin(self, attention_mask: Tensor | None) -> None:
        """A forward begins; rows where the mask [batch, length] is 0 are padding."""
        self.end()
        self.calls.clear()
        self._true_rows = attention_mask.reshape(-1).bool() if attention_mask is not None else None

    def end(self) -> None:
        """A forward has ended: let go of its tensors."""
        self._recent.clear()
        self._true_rows = None

    def note(self, path: str, given: Tensor) -> None:
        """A layer at `path` is given a tensor [..., d]. Raises SharingChanged where it shares no more."""
        self.seen.add(path)
        self.calls[path] += 1
        first = path if path in self._apart else self._first_reader(path, given)
        leader = self._leader.setdefault(path, first)
        if leader == path:
            self.add(path, self.without_padding(given.reshape(-1, given.shape[-1])))
        elif leader != first:
            raise SharingChanged(path)

    def add(self, name: str, rows: Tensor) -> None:
        """Rows [n, d] that count under a name of their own."""
        if name not in self._sums:
            self._sums[name] = InputStatistics(rows.shape[-1], self.gram, rows.device)
        self._sums[name].add(rows)

    def without_padding(self, rows: Tensor) -> Tensor:
        """The rows of true tokens, where these rows are the tokens of the batch one by one."""
        true_rows = self.true_rows(rows.shape[0])
        return rows if true_rows is None else rows[true_rows.to(rows.device)]

    def true_rows(self, count: int) -> Tensor | None:
        """Which of `count` rows are no padding; None where all are, or where the rows are not the batch's tokens."""
        return self._true_rows if self._true_rows is not None and self._true_rows.numel() == count else None

    def statistics(self) -> list[InputStatistics]:
        """What was summed, with the layers that read it."""
        readers: dict[str, list[str]] = {name: [name] for name in self._sums}
        for path, leader in self._leader.items():
            if path != leader:
                readers[leader].append(path)
        for name, sums in self._sums.items():
            sums.readers = tuple(readers[name])
        return list(self._sums.values())

    def _first_reader(self, path: str, given: Tensor) -> str:
        version = 0 if given.is_inference() else given._version
        for tensor, then, reader in self._recent:
            if tensor is given and then == version and reader not in self._apart:
                return reader
        self._recent.append((given, version, path))
        return path
