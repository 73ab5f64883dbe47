"""Memory of a device for experts: some slots for each layer, and one place where a whole layer has room."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inference_pio.streaming.aligned import up_to
from inference_pio.streaming.units import Unit

PLACE = 512
"""Bytes that a GPU's own allocations begin at multiples of."""
READ_AT_ONCE = 16
"""Kernels are chosen by whether an expert's bytes begin at a multiple of this."""


class Stretch:
    """One tensor of several experts, one behind the other in a room: as bytes, and as the layer's own looks."""

    def __init__(self, room: torch.Tensor, at: int, like: torch.Tensor, experts: int, count: int) -> None:
        self.each = like.nbytes // experts
        self._bytes = room[at : at + count * self.each]
        self.shown = self._bytes.view(like.dtype).view(count, *like.shape[1:])

    def of(self, place: int) -> torch.Tensor:
        """The bytes of one place."""
        return self._bytes[place * self.each : (place + 1) * self.each]


class ExpertRoom:
    """`slots` [layer][tensor], and `whole` likewise, whose layers share one place; one allocation for all."""

    def __init__(self, device: torch.device, units: Sequence[Unit], experts: Sequence[int], capacity: int) -> None:
        layers = list(zip(units, experts, strict=True))
        planned, end = [], 0
        for unit, count in layers:
            places, end = _laid_out(unit, count, min(capacity, count), end)
            planned.append(places)
        whole = [_laid_out(unit, count, count, end) for unit, count in layers]
        with torch.inference_mode(False):
            room = torch.empty(max(last for _, last in whole), dtype=torch.uint8, device=device)
            self.slots = [
                [Stretch(room, at, like, count, min(capacity, count)) for at, like in places]
                for places, (_, count) in zip(planned, layers, strict=True)
            ]
            self.whole = [
                [Stretch(room, at, like, count, count) for at, like in places]
                for (places, _), (_, count) in zip(whole, layers, strict=True)
            ]


def _laid_out(unit: Unit, experts: int, count: int, end: int) -> tuple[list[tuple[int, torch.Tensor]], int]:
    """Where the tensors of so many experts of a layer begin from `end` on, and where they end."""
    places = []
    for tensor in unit.tensors:
        at = up_to(end, PLACE)
        places.append((at, tensor))
        end = at + count * (tensor.nbytes // experts)
    return places, end


def room_bytes(expert_bytes: Sequence[int], experts: Sequence[int], capacity: int) -> int:
    """What `capacity` slots a layer take, and once all experts of the largest layer.

    >>> room_bytes([10, 10], [8, 8], 2)
    120
    """
    pairs = list(zip(expert_bytes, experts, strict=True))
    return sum(size * min(capacity, count) for size, count in pairs) + max(size * count for size, count in pairs)


def most_slots(expert_bytes: Sequence[int], experts: Sequence[int], budget: int) -> int:
    """The most slots a layer that a budget has room for; 0 where it has room for none.

    >>> most_slots([10, 10], [8, 8], 125), most_slots([10], [8], 89)
    (2, 0)
    """
    fitting = [count for count in range(1, max(experts)) if room_bytes(expert_bytes, experts, count) <= budget]
    return max(fitting, default=0)
