"""A slot on a GPU: filled from pinned host memory by copies beside the computation, which the host does not wait for.

Order between copies and computation is kept by events alone: a slot is written when what computed with it has ended,
and computed with when its copy has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from inference_pio.streaming.pieces import Piece
from inference_pio.streaming.pinned import Pinned
from inference_pio.streaming.reader import Reader, Reading
from inference_pio.streaming.slot import Slot
from inference_pio.streaming.units import Unit


class Device:
    """What the slots of one model on a GPU share: the stream of copies, and the units that wait in host memory."""

    def __init__(self, device: torch.device, waiting: Mapping[int, Pinned]) -> None:
        self.device, self.waiting = device, waiting
        if device.type == "cuda":
            self.copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Fill tensors of the device, each from another one; what is computed from now on has them.

        Where device and host are one, as in tests, copies are made at once.
        """
        if self.device.type != "cuda":
            for target, source in pairs:
                target.copy_(source)
        elif pairs:
            with torch.cuda.stream(self.copies):
                for target, source in pairs:
                    target.copy_(source, non_blocking=True)
            torch.cuda.current_stream(self.device).wait_stream(self.copies)

    def computed(self) -> None:
        """What is copied from now on waits for all that has been given to the device to compute."""
        if self.device.type == "cuda":
            self.copies.wait_stream(torch.cuda.current_stream(self.device))

    def drain(self) -> None:
        """Wait until nothing is being copied."""
        if self.device.type == "cuda":
            self.copies.synchronize()

    def make(self, nbytes: int, units: Sequence[Unit]) -> Slot:
        return DeviceSlot(nbytes, units, self)

    def __deepcopy__(self, memo: dict[int, object]) -> Device:
        return Device(self.device, self.waiting)


class DeviceSlot(Slot):
    """A unit from host memory is copied at once; one from disk goes through a slab, when it is asked for."""

    def __init__(self, nbytes: int, units: Sequence[Unit], shared: Device) -> None:
        self._shared = shared
        self._slab = Pinned(nbytes) if len(shared.waiting) < len(units) else None
        self._to_copy: torch.Tensor | None = None
        self._copied: torch.cuda.Event | None = None
        self._computed: torch.cuda.Event | None = None
        super().__init__(nbytes, units)

    def _room(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self._shared.device)

    def fill(self, number: int, pieces: Sequence[Piece], reader: Reader) -> None:
        self._to_copy = None  # what was read for another unit is not wanted any more
        waiting = self._shared.waiting.get(number)
        if waiting is not None:
            self.unit, self.reading = number, None
            self._copy(waiting.bytes)
            return
        assert self._slab is not None, "a unit that waits nowhere is read through a slab"
        if self._copied is not None:
            self._copied.synchronize()  # the slab is read until then; the copy began a layer ago
        super().fill(number, pieces, reader)
        self._to_copy = self._slab.bytes

    def _begin(self, pieces: Sequence[Piece], reader: Reader) -> Reading:
        assert self._slab is not None
        return reader.start(pieces, self._slab.bytes)

    def ready(self) -> None:
        try:
            super().ready()
        except BaseException:
            self._to_copy = None
            raise
        if self._to_copy is not None:
            self._copy(self._to_copy)
            self._to_copy = None
        if self._copied is not None:
            torch.cuda.current_stream(self._shared.device).wait_event(self._copied)

    def left(self) -> None:
        self._computed = torch.cuda.current_stream(self._shared.device).record_event()

    def _copy(self, source: torch.Tensor) -> None:
        if self._computed is not None:
            self._shared.copies.wait_event(self._computed)
        with torch.cuda.stream(self._shared.copies):
            self.bytes[: len(source)].copy_(source, non_blocking=True)
            self.bytes.record_stream(self._shared.copies)  # its memory must not go to others before the copy has ended
            self._copied = self._shared.copies.record_event()
