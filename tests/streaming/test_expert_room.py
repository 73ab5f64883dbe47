"""Slots overlap nowhere, hold what is put in them, and take the bytes that were planned."""

from __future__ import annotations

import itertools

import pytest
import torch

from inference_pio.streaming.expert_room import PLACE, ExpertRoom, most_slots, room_bytes
from inference_pio.streaming.units import Region, Unit
from inference_pio.undo.parked import View


def unit_of(experts: int, *dtypes: torch.dtype) -> Unit:
    """A layer's experts: tensors of several dtypes, such as words of codes and their scales."""
    generator = torch.Generator().manual_seed(experts)
    tensors = [torch.randint(0, 99, (experts, 3, 8), generator=generator).to(dtype) for dtype in dtypes]
    regions, at = [], 0
    for one in tensors:
        regions.append(Region([one], [View.of(one)], one.nbytes, at, experts))
        at += one.nbytes
    return Unit(f"layers.{experts}", regions)


def test_every_place_holds_what_was_put_there() -> None:
    units = [unit_of(4, torch.int32, torch.bfloat16), unit_of(6, torch.int32, torch.bfloat16)]
    room = ExpertRoom(torch.device("cpu"), units, [4, 6], 3)
    for slots, unit in zip(room.slots, units, strict=True):
        for one, tensor in zip(slots, unit.tensors, strict=True):
            assert one.shown.shape == (3, *tensor.shape[1:])
            assert (one.shown.data_ptr() - room.slots[0][0].shown.data_ptr()) % PLACE == 0
            for place in range(3):
                one.of(place).copy_(tensor[place + 1].view(torch.uint8).flatten())
    for whole, unit in zip(room.whole, units, strict=True):  # the layers share it
        for one, tensor in zip(whole, unit.tensors, strict=True):
            one.shown.copy_(tensor)
            assert one.shown.dtype == tensor.dtype
        assert all(torch.equal(one.shown, tensor) for one, tensor in zip(whole, unit.tensors, strict=True))
    for slots, unit in zip(room.slots, units, strict=True):
        assert all(torch.equal(one.shown, tensor[1:4]) for one, tensor in zip(slots, unit.tensors, strict=True))


@pytest.mark.parametrize("capacity", [1, 5])
def test_it_takes_what_was_planned_but_for_where_tensors_begin(capacity: int) -> None:
    units = [unit_of(4, torch.uint8), unit_of(6, torch.float32, torch.uint8)]
    room = ExpertRoom(torch.device("cpu"), units, [4, 6], capacity)
    each = [sum(tensor.nbytes for tensor in unit.tensors) // count for unit, count in zip(units, (4, 6), strict=True)]
    planned = room_bytes(each, [4, 6], capacity)
    assert planned <= room.slots[0][0].shown.untyped_storage().nbytes() <= planned + 5 * PLACE


def test_the_most_that_fit() -> None:
    for budget, wanted in ((99, 0), (100, 1), (119, 1), (120, 2), (999, 7)):
        assert most_slots([10, 10], [8, 8], budget) == wanted
    for first, second in itertools.pairwise(range(1, 8)):
        assert room_bytes([10, 20], [8, 4], first) <= room_bytes([10, 20], [8, 4], second)
