"""A slot: room for one unit, filled by the reader while another one computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inference_pio.streaming.aligned import aligned_bytes
from inference_pio.streaming.pieces import Piece
from inference_pio.streaming.reader import Reader, Reading
from inference_pio.streaming.units import Unit


class Slot:
    """`unit` is the number of the one that it holds or awaits; `users` computes with it now."""

    def __init__(self, nbytes: int, units: Sequence[Unit]) -> None:
        self.bytes = self._room(nbytes)
        self.unit: int | None = None
        self.users = 0
        self.reading: Reading | None = None
        self._shown = [[data for region in unit.regions for data in region.shown_in(self.bytes)] for unit in units]

    def _room(self, nbytes: int) -> torch.Tensor:
        return aligned_bytes(nbytes)

    @property
    def free(self) -> bool:
        """Whether nobody computes with it and nothing is on its way to it."""
        return not self.users and (self.reading is None or self.reading.done)

    @property
    def failed(self) -> bool:
        """Whether what was read ahead of its time did not come."""
        return self.reading is not None and self.reading.done and self.reading.error is not None

    def fill(self, number: int, pieces: Sequence[Piece], reader: Reader) -> None:
        """Begin to bring a unit here; what is on its way for another one is given up."""
        if self.reading is not None and not self.reading.done:
            self.reading.give_up()
        self.unit, self.reading = None, self._begin(pieces, reader)
        self.unit = number

    def _begin(self, pieces: Sequence[Piece], reader: Reader) -> Reading:
        return reader.start(pieces, self.bytes)

    def ready(self) -> None:
        """Wait until the unit is there. Raises what became of it; then the slot is empty."""
        reading = self.reading
        if reading is None:
            return
        try:
            reading.wait()
        except Exception:
            if self.reading is reading:
                self.unit = self.reading = None
            raise

    def left(self) -> None:
        """A computation with it has been given to its device."""

    def shown(self) -> list[torch.Tensor]:
        """The unit's tensors as they lie here, in the order of `Unit.tensors`."""
        assert self.unit is not None
        return self._shown[self.unit]
