"""One layer's tokens in the host's memory: a row a token, appended, in room that grows by blocks of 256."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from inference_pio.cache.lane import Lane
from inference_pio.errors import StorageError

BLOCK = 256


def room_for(tokens: int) -> int:
    """The tokens that room is made for: a quarter more, in whole blocks.

    >>> room_for(1), room_for(1000)
    (256, 1280)
    """
    return -(-(tokens + tokens // 4) // BLOCK) * BLOCK


class HostSlab:
    """`rows` [capacity, batch, width], pinned where a GPU reads them; the first `length` tokens are held.

    Tokens lie one behind the other, so all of them are one copy, and new ones another.
    """

    def __init__(self, batch: int, width: int, dtype: torch.dtype, lane: Lane, *, pinned: bool) -> None:
        self.lane, self.pinned, self.length = lane, pinned, 0
        self.rows = _allocate(0, batch, width, dtype)
        self._pinned: weakref.finalize[Any, HostSlab] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> HostSlab:
        self.lane.drain()
        capacity, batch, width = self.rows.shape
        other = HostSlab(batch, width, self.rows.dtype, self.lane, pinned=self.pinned)
        other._take(capacity, self.rows[: self.length])
        other.length = self.length
        return other

    @property
    def nbytes(self) -> int:
        """All bytes that are held, used or not."""
        return self.rows.nbytes

    def takes(self, batch: int, width: int, dtype: torch.dtype, pinned: bool) -> bool:
        """Whether tokens of this kind fit its room."""
        return (*self.rows.shape[1:], self.rows.dtype, self.pinned) == (batch, width, dtype, pinned)

    def begin(self, lane: Lane) -> None:
        """Hold no token, and go by another lane from now on."""
        self.lane.drain()
        self.lane, self.length = lane, 0

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens; the host waits for what is on its way, if they are moved."""
        if tokens > len(self.rows):
            self.lane.drain()
            self._take(tokens, self.rows[: self.length])

    def append(self, rows: Tensor) -> None:
        """Send new tokens [tokens, batch, width] behind the others."""
        after = self.length + len(rows)
        if after > len(self.rows):
            self.reserve(room_for(after))
        self.lane.send(self.rows[self.length : after], rows)
        self.length = after

    def select(self, rows: Tensor) -> None:
        """Take these rows of the batch, in this order; the host waits for what is on its way."""
        self.lane.drain()
        self._take(len(self.rows), self.rows[: self.length].index_select(1, rows.cpu()))

    def _take(self, capacity: int, held: Tensor) -> None:
        """Fresh room, with what is held at its beginning; the old is given back."""
        fresh = _allocate(capacity, held.shape[1], held.shape[2], held.dtype)
        pinned = _pin(fresh, self.lane) if self.pinned and fresh.numel() else None
        fresh[: len(held)].copy_(held)
        if self._pinned is not None:
            self._pinned()
        self.rows = fresh
        self._pinned = None if pinned is None else weakref.finalize(self, *pinned)


@torch.inference_mode(False)  # a slab made in inference mode could not be written outside of it
def _allocate(capacity: int, batch: int, width: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(capacity, batch, width, dtype=dtype)


def _pin(tensor: Tensor, lane: Lane) -> tuple[Any, ...]:
    """Register exactly these bytes with the driver, since torch's own pinned memory comes in powers of two; how to
    take that back.
    """
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    code = int(runtime.cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0))
    if code != 0:
        raise StorageError(
            f"{tensor.nbytes / 1e6:,.0f} MB of the host's memory could not be pinned for the cache (CUDA error {code}):"
            " free memory, raise the limit of locked memory (ulimit -l), or keep the cache on the device."
        )
    return _unpin, runtime, tensor.data_ptr(), lane


def _unpin(runtime: Any, address: int, lane: Lane) -> None:
    lane.drain()
    runtime.cudaHostUnregister(address)
