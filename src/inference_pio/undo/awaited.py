"""Tensors of a model that is being loaded: how they will look, while their bytes still lie in its checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from inference_pio.undo.checkpoint import TensorInFile

if TYPE_CHECKING:
    from inference_pio.undo.parked import View

MARK = "_inference_pio_awaited"
"""The attribute by which a tensor tells what it waits for; it goes when the tensor is pointed at other data."""
_loading: ContextVar[object | None] = ContextVar("inference_pio_loading", default=None)


@dataclass(eq=False)
class Awaited:
    """What becomes of one tensor: `parts` of files that fill it side by side, each with its place in bytes.

    `read` brings its bytes (flat uint8 on the host), to a target if one is given; `again` does so when nothing of the
    loading is left. `checksum` is known once they were read, and `sums` those of pieces, by their place and length;
    `here` tells that the tensor has them.
    """

    view: View
    parts: tuple[tuple[int, TensorInFile], ...]
    read: Callable[[torch.Tensor | None], torch.Tensor]
    again: Callable[[], torch.Tensor]
    stand_in: torch.Tensor
    """Kept as long as the model loads: the address of its one number must not become another tensor's."""
    here: bool = False
    checksum: int | None = None
    sums: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return self.view.end_bytes

    @property
    def where(self) -> str:
        return ", ".join(sorted({str(one.file) for _, one in self.parts}))


def awaited_of(tensor: torch.Tensor) -> Awaited | None:
    """What a tensor still waits for; None for one that has its bytes, as all have but those of a model that loads."""
    found = mark_of(tensor)
    return found if found is not None and not found.here else None


def origin_of(tensor: torch.Tensor) -> Awaited | None:
    """Where the bytes of a tensor came from, as long as its model is being loaded."""
    found = mark_of(tensor)
    return found if found is not None and found.here else None


def mark_of(tensor: torch.Tensor) -> Awaited | None:
    return vars(tensor).get(MARK) if hasattr(tensor, "__dict__") else None


def unmark(tensor: torch.Tensor) -> None:
    """A tensor waits for nothing any more."""
    if hasattr(tensor, "__dict__"):
        vars(tensor).pop(MARK, None)


@contextmanager
def loading() -> Iterator[None]:
    """What is parked in here gets no bytes back in here: nobody will see a model that was not loaded to its end."""
    token = _loading.set(object())
    try:
        yield
    finally:
        _loading.reset(token)


def this_loading() -> object | None:
    """What tells the loading that runs here from others; None where none does."""
    return _loading.get()
