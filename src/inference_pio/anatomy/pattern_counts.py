"""What a pattern over a dense attention function did while the model ran: how often it served, and how often not."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor


class PatternCounts:
    """One for all layers of a model, and copied with it. Threads that run one model at a time may lose a count.

    >>> counts = PatternCounts()
    >>> counts.served("decode", "triton", kept=1, of=4)
    >>> counts.left("short")
    >>> counts.to_json()["density"], counts.to_json()["dense_calls"]
    (0.25, {'short': 1})
    """

    def __init__(self) -> None:
        self.sparse_calls: Counter[str] = Counter()
        self.backends: Counter[str] = Counter()
        self.dense_calls: Counter[str] = Counter()
        self._kept: int | Tensor = 0
        self._of: int | Tensor = 0

    def served(self, phase: str, backend: str, *, kept: int | Tensor, of: int | Tensor, calls: int = 1) -> None:
        """The pattern served calls: of so many pairs of a query and a key before it, all heads, it kept so many."""
        self.sparse_calls[phase] += calls
        self.backends[backend] += calls
        self._kept, self._of = self._kept + kept, self._of + of

    def left(self, reason: str, calls: int = 1) -> None:
        """So many calls were left to the dense function."""
        self.dense_calls[reason] += calls

    def to_json(self) -> dict[str, Any]:
        """Calls of one layer each; `density` is the share of pairs kept in the calls that were served. What was counted
        on a device is waited for here."""
        kept, of = int(self._kept), int(self._of)
        return {
            "sparse_calls": dict(self.sparse_calls), "backends": dict(self.backends),
            "dense_calls": dict(self.dense_calls), "density": round(kept / of, 4) if of else None,
        }  # fmt: skip
