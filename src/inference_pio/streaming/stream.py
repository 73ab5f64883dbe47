"""The stream: units come into slots just ahead of the computation, and their tensors show them while it needs them."""

from __future__ import annotations

import copy
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn

import torch
from torch import nn

from inference_pio.errors import RefusedOnOptimized
from inference_pio.streaming.aligned import aligned_bytes
from inference_pio.streaming.device_slot import Device
from inference_pio.streaming.pieces import Piece
from inference_pio.streaming.reader import LOOK_AGAIN_S, Reader
from inference_pio.streaming.slot import Slot
from inference_pio.streaming.store import Store
from inference_pio.streaming.units import Unit
from inference_pio.undo.tensors import point, stand_in_for

CALL = nn.Module._call_impl.__code__


@dataclass
class Counts:
    """What a stream has done: units entered, those that were there in time, and seconds spent waiting for others."""

    units: int = 0
    in_time: int = 0
    read_bytes: int = 0
    waited_s: float = 0.0


class Stream:
    """`enter` before a unit computes and `leave` after it; any number of threads, each in one unit at a time.

    Units follow one another in a circle, so that the first ones of the next pass are read while the last ones of this
    one compute. Another order costs a wait, and no more.
    """

    def __init__(
        self, units: Sequence[Unit], pieces: Sequence[Sequence[Piece]], reader: Reader, slots: int,
        store: Store | None = None, device: Device | None = None,
    ) -> None:  # fmt: skip
        self.units, self._pieces, self._reader, self._store, self._device = units, pieces, reader, store, device
        self.counts = Counts()
        self._room = max(unit.room for unit in units)
        make = device.make if device is not None else Slot
        self._slots = [make(self._room, units) for _ in range(slots)]
        self._stand_ins: list[list[torch.Tensor]] = []
        self._turn = threading.Condition()
        self._inside: dict[int, tuple[int, Slot]] = {}
        self._opened: dict[int, tuple[int, list[torch.Tensor]]] = {}
        """By unit, how many look at it from outside, and what they see."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Stream:
        """A copied model streams by itself, from the same files; a store goes when both have let go of it."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        units = []
        for unit, stand_ins in zip(self.units, self._stand_ins, strict=True):
            copies: dict[int, torch.Tensor] = {}
            for tensor, stand_in in zip(unit.tensors, stand_ins, strict=True):
                copies[id(tensor)] = copy.deepcopy(tensor, memo)
                point(copies[id(tensor)], stand_in_for(stand_in))  # one by one: a copy takes memory for all its numbers
            regions = [replace(one, tensors=[copies[id(tensor)] for tensor in one.tensors]) for one in unit.regions]
            units.append(Unit(unit.path, regions))
        reader = self._reader.another()
        reader.open(sorted({piece.file for pieces in self._pieces for piece in pieces}))
        store = self._store.share() if self._store is not None else None
        twin.__dict__.update(vars(self._twin(units, reader, store)))
        twin.begin()
        return twin

    def _twin(self, units: Sequence[Unit], reader: Reader, store: Store | None) -> Stream:
        """A stream of the same kind for other tensors."""
        return Stream(units, self._pieces, reader, len(self._slots), store, copy.deepcopy(self._device))

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise RefusedOnOptimized(
            "a model whose weights stream from disk cannot be pickled: they are in no memory. "
            "Use inference_pio.save(model, folder), or reset_model_optimizations(model) first."
        )

    def begin(self) -> None:
        """The units' tensors have been put away: how they look now is how they look at rest."""
        self._stand_ins = [[tensor.detach() for tensor in unit.tensors] for unit in self.units]

    @property
    def nbytes(self) -> int:
        """Memory that the slots take, as far as weights fill it."""
        return len(self._slots) * max(sum(tensor.nbytes for tensor in unit.tensors) for unit in self.units)

    @property
    def pass_bytes(self) -> int:
        """Weights that streams bring for one pass through all units."""
        return sum(tensor.nbytes for unit in self.units for tensor in unit.tensors)

    # ------------------------------------------------------------------ one pass through a unit

    def enter(self, number: int) -> None:
        """Let a unit's tensors show their true values. Raises StreamError where they cannot be read."""
        self._reader.check_process()
        me = threading.get_ident()
        with self._turn:
            self._forget(me)
            self._check_unchanged(number)
            slot = self._slot_for(number)
            slot.users += 1
            self._inside[me] = number, slot
            self._read_ahead(number)
            in_time = slot.reading is None or slot.reading.done
        start = time.perf_counter()
        try:
            slot.ready()
        except BaseException:
            self.leave(number)
            raise
        with self._turn:
            self.counts.units += 1
            self.counts.in_time += in_time
            self.counts.waited_s += time.perf_counter() - start
            self._look(number)

    def _check_unchanged(self, number: int) -> None:
        """Raise RefusedOnOptimized where a part of a unit was cast or moved, which showing it again would undo."""
        for tensor, stand_in in zip(self.units[number].tensors, self._stand_ins[number], strict=True):
            if tensor.dtype != stand_in.dtype or tensor.device != stand_in.device:
                raise RefusedOnOptimized(
                    f"a weight of {self.units[number].path} has become {tensor.dtype} on {tensor.device}, and its "
                    f"bytes come from disk as {stand_in.dtype} on {stand_in.device}: take disk_offloading off, cast or "
                    "move the model, and apply it again."
                )

    def leave(self, number: int) -> None:
        """The unit has computed: its tensors show their stand-ins again, and its slot may be filled anew."""
        me = threading.get_ident()
        with self._turn:
            if me in self._inside and self._inside[me][0] == number:
                self._forget(me)
                self._read_ahead(number)

    def rest(self) -> None:
        """Nobody computes: what a call that was cut short left showing is hidden."""
        with self._turn:
            for thread in list(self._inside):
                self._forget(thread)
            for number in list(self._opened):
                del self._opened[number]
                self._look(number)

    # ------------------------------------------------------------------ looks at a unit from outside of a pass

    def open(self, number: int) -> None:
        """Let a unit show its true values in memory of their own, every checksum checked, until all who opened it have
        shut it; whoever computes meanwhile computes with the same.
        """
        if self._joined(number):
            return
        unit = self.units[number]
        waiting = self._device.waiting.get(number) if self._device is not None else None
        fresh = waiting.bytes if waiting is not None else aligned_bytes(self._room)
        if waiting is None:
            self._reader.read_now(self._pieces[number], fresh)
        fresh = fresh.to(unit.tensors[0].device, copy=waiting is not None)  # none may write to what waits
        with self._turn:
            if not self._joined(number):
                self._opened[number] = 1, [data for region in unit.regions for data in region.shown_in(fresh)]
                self._look(number)

    def is_open(self, number: int) -> bool:
        """Whether somebody looks at a unit from outside, who keeps its true values there."""
        with self._turn:
            return number in self._opened

    def _joined(self, number: int) -> bool:
        """One more looks at a unit that is open already."""
        with self._turn:
            if number not in self._opened:
                return False
            holders, shown = self._opened[number]
            self._opened[number] = holders + 1, shown
            return True

    def shut(self, number: int) -> None:
        """One of those who opened a unit has seen it."""
        with self._turn:
            holders, shown = self._opened.pop(number, (0, []))
            if holders > 1:
                self._opened[number] = holders - 1, shown
            elif holders:
                self._look(number)

    def close(self) -> None:
        """End the threads and let the slots go."""
        self._reader.close()
        self._slots.clear()

    def to_json(self) -> dict[str, Any]:
        """What it has done, as plain data."""
        return {**asdict(self.counts), "waited_s": round(self.counts.waited_s, 6), "slots": len(self._slots)}

    # ------------------------------------------------------------------ inner parts

    def _look(self, number: int) -> None:
        """Point a unit's tensors at what they must show now."""
        shown = self._stand_ins[number]
        for unit, slot in self._inside.values():
            if unit == number and slot.unit == number:
                shown = slot.shown()
        if number in self._opened:  # a slot will hold other bytes by the time that they are looked at
            shown = self._opened[number][1]
        for tensor, data in zip(self.units[number].tensors, shown, strict=True):
            point(tensor, data)

    def _forget(self, thread: int) -> None:
        """A thread is in no unit any more, whether it said so or a Ctrl-C cut its call short."""
        if thread in self._inside:
            number, slot = self._inside.pop(thread)
            slot.users -= 1
            slot.left()
            self._look(number)
            self._turn.notify_all()

    def _slot_for(self, number: int) -> Slot:
        """The slot that holds or awaits a unit; if none does, one is filled, after a wait where all are in use."""
        while True:
            for slot in self._slots:
                if slot.unit == number:
                    return self._fill(slot, number) if slot.failed else slot  # the file may be back by now
            idle = [slot for slot in self._slots if not slot.users]
            if idle:
                return self._fill(next((slot for slot in idle if slot.free), idle[0]), number)
            self._turn.wait(LOOK_AGAIN_S)
            for thread in [thread for thread in self._inside if not _computes(thread)]:
                self._forget(thread)

    def _fill(self, slot: Slot, number: int) -> Slot:
        slot.fill(number, self._pieces[number], self._reader)
        self.counts.read_bytes += sum(piece.nbytes for piece in self._pieces[number])
        return slot

    def _read_ahead(self, number: int) -> None:
        """Fill free slots with the units that come after this one, in a circle; this one may be wanted again."""
        ahead = [(number + step) % len(self.units) for step in range(len(self._slots))]
        held = {slot.unit for slot in self._slots}
        missing = [one for one in ahead if one not in held]
        for slot in self._slots:
            if missing and slot.free and slot.unit not in ahead:
                self._fill(slot, missing.pop(0))


def _computes(thread: int) -> bool:
    """Whether a thread is inside the call of some module."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code is CALL:
            return True
        frame = frame.f_back
    return False
