"""Counters that launches begin at zero, each with one of its own: many are zeroed at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import NamedTuple

import torch

from triton.runtime import driver

MOST = 1024
"""Zeroing takes the host as long as half a launch: 13 us beside an H100, by hand (benchmarks/LOG.md)."""


class Slot(NamedTuple):
    """A counter, `counters[place]`, int32, and the stream whose launches may count with it."""

    counters: torch.Tensor
    place: int
    stream: int


class Counters:
    """Zeros that nobody has counted with yet.

    They are zeroed on the stream that counts with them, before it does. A graph's own are zeroed in each of its
    replays.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._left: dict[tuple[torch.device, int], Iterator[Slot]] = {}

    def take(self, device: torch.device) -> Slot:
        """A counter for the next launch on a device, which is the current one."""
        stream: int = driver.active.get_current_stream(device.index)
        if stream and device.type == "cuda" and torch.cuda.is_current_stream_capturing():  # the default one cannot be
            return Slot(_zeros(1, device), 0, stream)
        left = self._left.get((device, stream))
        slot = None if left is None else next(left, None)
        return self._fill(device, stream) if slot is None else slot

    def _fill(self, device: torch.device, stream: int) -> Slot:
        counters = _zeros(self.most, device)
        slots = map(Slot, repeat(counters), range(self.most), repeat(stream))
        self._left[device, stream] = slots
        return next(slots)


def _zeros(number: int, device: torch.device) -> torch.Tensor:
    return torch.zeros(number, dtype=torch.int32, device=device)
