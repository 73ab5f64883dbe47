"""What a module that works piece by piece keeps beside it: how large pieces are, and what its calls came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import nn

PIECES = "_inference_pio_pieces"
"""The attribute under which a module holds them."""


@dataclass
class Pieces:
    """`tokens` of all rows together make a piece; `calls` were cut into `made` pieces, `left` the others by reason.

    A call that fits one piece is counted nowhere.
    """

    tokens: int
    calls: int = 0
    made: int = 0
    left: Counter[str] = field(default_factory=Counter)

    def __deepcopy__(self, memo: dict[int, Any]) -> Pieces:
        return Pieces(self.tokens)

    def cut(self, pieces: int) -> None:
        """Count a call that was cut."""
        self.calls += 1
        self.made += pieces

    def to_json(self) -> dict[str, Any]:
        return {"calls": self.calls, "pieces": self.made, "left_whole": dict(self.left)}


_WHOLE: ContextVar[bool] = ContextVar("whole calls", default=False)


@contextmanager
def whole_calls() -> Iterator[None]:
    """Inside this block calls stay whole: who watches the layers of a model counts and masks their calls."""
    before = _WHOLE.set(True)
    try:
        yield
    finally:
        _WHOLE.reset(before)


def pieces_of(module: nn.Module) -> Pieces | None:
    """What a module keeps of its pieces, if it works in pieces now."""
    found = None if _WHOLE.get() else module.__dict__.get(PIECES)
    return found if isinstance(found, Pieces) else None
