"""A stream of experts to a device: each layer keeps those that were chosen last in slots, and gets others by copies.

What a call chose lies on the device, and the host must know it to copy: it waits for the routers of every layer, once.
For no copy: the device waits for those by events.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from inference_pio.errors import StreamError
from inference_pio.streaming.device_slot import Device
from inference_pio.streaming.expert_room import ExpertRoom, Stretch, room_bytes
from inference_pio.streaming.last_chosen import LastChosen
from inference_pio.streaming.pieces import Piece
from inference_pio.streaming.reader import Reader
from inference_pio.streaming.store import Store
from inference_pio.streaming.stream import Stream
from inference_pio.streaming.units import Unit

NOTHING = (-1, frozenset[int]())
SHORT = 256
"""Numbers that are quicker to count, and to change, on the host than by a few launches."""
Pair = tuple[torch.Tensor, torch.Tensor]
"""Where bytes go, and where they come from."""


@dataclass
class ChosenCounts:
    """Calls of experts' modules, chosen experts that were in slots, those that were not, and bytes from the host."""

    calls: int = 0
    hits: int = 0
    misses: int = 0
    copied_bytes: int = 0


@dataclass(frozen=True)
class Brought:
    """What a module computes with for one call: its tensors, the index that goes with them, how many experts."""

    tensors: dict[int, torch.Tensor]
    """By the id of the module's own, what is in its place."""
    index: torch.Tensor
    experts: int


class ExpertSlots(Stream):
    """Its units are the experts of one layer each, all of which wait in host memory; `capacity` slots for each.

    A call that chose more than there are slots (a prompt) computes in a place that has room for a whole layer; what is
    in slots stays there. One call at a time is between `bring` and its end.
    """

    def __init__(
        self, units: Sequence[Unit], pieces: Sequence[Sequence[Piece]], reader: Reader, experts: Sequence[int],
        capacity: int, device: Device,
    ) -> None:  # fmt: skip
        super().__init__(units, pieces, reader, 0, None, device)
        self.experts, self.capacity = list(experts), capacity
        self.in_slots, self.whole = ChosenCounts(), ChosenCounts()
        self._kept = [LastChosen(min(capacity, count)) for count in experts]
        self._waiting = device
        self._space: ExpertRoom | None = None
        self._laid: tuple[int, frozenset[int]] = NOTHING
        """The layer that was computed last where a whole one has room, and its experts that are there."""
        self._one = threading.RLock()

    def _twin(self, units: Sequence[Unit], reader: Reader, store: Store | None) -> Stream:
        return ExpertSlots(units, self._pieces, reader, self.experts, self.capacity, copy.deepcopy(self._waiting))

    @property
    def device(self) -> torch.device:
        return self._waiting.device

    @property
    def nbytes(self) -> int:
        """Memory of the device that experts take."""
        pairs = zip(self.units, self.experts, strict=True)
        each = [sum(tensor.nbytes for tensor in unit.tensors) // count for unit, count in pairs]
        return room_bytes(each, self.experts, self.capacity)

    def take_room(self) -> ExpertRoom:
        """The slots; a copy of a model takes them when it first computes, so that one that never does has none."""
        with self._one:
            if self._space is None:
                self._space = ExpertRoom(self._waiting.device, self.units, self.experts, self.capacity)
                self._waiting.computed()
            return self._space

    @contextmanager
    def brought(self, number: int, index: torch.Tensor, *, in_order: bool) -> Iterator[Brought]:
        """In here the chosen experts of a layer are on the device; `in_order`: at their own numbers.

        Raises StreamError where they do not come; what was in slots is there still, but for what made room.
        """
        self._reader.check_process()
        with self._one:
            with self._turn:
                self._check_unchanged(number)
            named, counts = _counted(index, self.experts[number])
            try:
                if len(counts) > self._kept[number].capacity:
                    yield self._all_at_once(number, index, counts)
                else:
                    self._put_in_slots(number, counts)
                    yield (
                        self._at_their_numbers(number, index, counts) if in_order else self._moved(number, index, named)
                    )
            finally:
                self._waiting.computed()

    def close(self) -> None:
        """Let the slots go, when nothing is being copied to them any more."""
        super().close()
        self._waiting.drain()
        self._space = None

    def to_json(self) -> dict[str, Any]:
        """What it has done, as plain data."""
        return {
            "experts": asdict(self.in_slots), "experts_of_prompts": asdict(self.whole),
            "slots_per_layer": self.capacity,
        }  # fmt: skip

    # ------------------------------------------------------------------ one layer

    def _put_in_slots(self, number: int, counts: dict[int, int]) -> None:
        kept, slots = self._kept[number], self.take_room().slots[number]
        missing = [expert for expert in counts if expert not in kept]
        kept.use(expert for expert in counts if expert in kept)
        places = kept.place(missing)
        try:
            self._copy(number, self._from_host(number, places, slots))
        except BaseException:
            kept.drop(missing)
            raise
        self._count(self.in_slots, number, len(counts), missing)

    def _moved(self, number: int, index: torch.Tensor, named: Sequence[int] | None) -> Brought:
        """Experts in slots, and the index with the slots' numbers."""
        kept, experts = self._kept[number], self.experts[number]
        table = kept.table(experts)
        if named is not None:
            slots = torch.tensor([table[min(one, experts)] for one in named], dtype=index.dtype)
            moved = slots.view(index.shape).to(index.device, non_blocking=True)
        else:
            moved = torch.tensor(table, dtype=index.dtype).to(index.device)[index.clamp(max=experts)]
        return self._shown(number, self.take_room().slots[number], moved, kept.capacity)

    def _at_their_numbers(self, number: int, index: torch.Tensor, counts: dict[int, int]) -> Brought:
        """Experts that are in slots, once more where a whole layer has room."""
        kept, room = self._kept[number], self.take_room()
        with self._laying(number, counts) as laid:
            places = {expert: kept[expert] for expert in counts if expert not in laid}
            self._copy(number, _between(room.slots[number], places.values(), room.whole[number], places))
        return self._shown(number, room.whole[number], index, self.experts[number])

    def _all_at_once(self, number: int, index: torch.Tensor, counts: dict[int, int]) -> Brought:
        """More experts than slots, at their own numbers; slots that are empty take those that were chosen most."""
        kept, room = self._kept[number], self.take_room()
        slots, whole = room.slots[number], room.whole[number]
        with self._laying(number, counts) as laid:
            wanted = [expert for expert in counts if expert not in laid]
            missing = sorted((one for one in wanted if one not in kept), key=lambda one: -counts[one])
            here = {expert: kept[expert] for expert in wanted if expert in kept}
            self._copy(number, self._from_host(number, {expert: expert for expert in missing}, whole))
            self._copy(number, _between(slots, here.values(), whole, here))
        staying = kept.place(missing[: kept.free])
        try:
            self._copy(number, _between(whole, staying, slots, staying.values()))
        except BaseException:
            kept.drop(staying)
            raise
        self._count(self.whole, number, len(counts), missing)
        return self._shown(number, whole, index, self.experts[number])

    @contextmanager
    def _laying(self, number: int, counts: Iterable[int]) -> Iterator[frozenset[int]]:
        """In here experts are put where a whole layer has room; some are there, if rows of one layer come in pieces."""
        layer, there = self._laid
        laid = there if layer == number else frozenset()
        self._laid = NOTHING
        yield laid
        self._laid = number, laid.union(counts)

    def _shown(self, number: int, stretches: Sequence[Stretch], index: torch.Tensor, experts: int) -> Brought:
        pairs = zip(self.units[number].tensors, stretches, strict=True)
        return Brought({id(tensor): one.shown for tensor, one in pairs}, index, experts)

    def _from_host(self, number: int, places: dict[int, int], to: Sequence[Stretch]) -> list[Pair]:
        """What brings experts from host memory to their places."""
        waiting, regions = self._waiting.waiting[number].bytes, self.units[number].regions
        return [
            (one.of(place), waiting[region.at + expert * one.each : region.at + (expert + 1) * one.each])
            for expert, place in places.items()
            for one, region in zip(to, regions, strict=True)
        ]

    def _copy(self, number: int, pairs: Sequence[Pair]) -> None:
        try:
            self._waiting.copy(pairs)
        except RuntimeError as error:
            raise StreamError(
                f"experts of {self.units[number].path} could not be copied to {self._waiting.device}: {error}"
            ) from error

    def _count(self, counted: ChosenCounts, number: int, chosen: int, missing: Sequence[int]) -> None:
        counted.calls += 1
        counted.hits += chosen - len(missing)
        counted.misses += len(missing)
        size = sum(tensor.nbytes for tensor in self.units[number].tensors) // self.experts[number]
        counted.copied_bytes += len(missing) * size


def _between(
    start: Sequence[Stretch], places: Iterable[int], to: Sequence[Stretch], new_places: Iterable[int]
) -> list[Pair]:
    """What brings experts from places of one stretch of the device to places of another."""
    moves = list(zip(places, new_places, strict=True))
    return [(to_one.of(new), one.of(old)) for old, new in moves for one, to_one in zip(start, to, strict=True)]


def _counted(index: torch.Tensor, experts: int) -> tuple[list[int] | None, dict[int, int]]:
    """An index as a list, where it is short, and how often each expert that lives here was chosen.

    The host waits for the device here, once.
    """
    flat = index.reshape(-1)
    if len(flat) <= SHORT:
        named = flat.tolist()
        return named, Counter(one for one in named if one < experts)
    flat = flat.clamp(max=experts).long()
    counts = torch.zeros(experts + 1, dtype=torch.int64, device=index.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat))
    return None, {expert: count for expert, count in enumerate(counts.tolist()[:experts]) if count}
