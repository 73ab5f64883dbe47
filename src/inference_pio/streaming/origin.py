"""Where a unit's bytes are read from: the user's own checkpoint where it has them bit for bit, else a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from inference_pio.streaming.pieces import Piece, cut
from inference_pio.streaming.store import Content, Store, open_store
from inference_pio.streaming.units import Region, Unit
from inference_pio.undo.checkpoint import Checkpoint


@dataclass
class Origins:
    """For each unit and each of its regions, the pieces that fill it, with `at` counted from the region's start."""

    pieces: list[list[list[Piece]]]
    store: Store | None = None
    checkpoint_bytes: int = 0
    store_bytes: int = 0

    @property
    def files(self) -> list[Path]:
        return sorted({piece.file for unit in self.pieces for region in unit for piece in region})

    @property
    def largest_piece(self) -> int:
        return max((piece.nbytes for unit in self.pieces for region in unit for piece in region), default=0)

    @property
    def told(self) -> str:
        """Where the bytes are, in words."""
        own = "the model's own files" if self.checkpoint_bytes else ""
        return " and ".join(filter(None, (own, str(self.store.folder) if self.store else "")))

    def pieces_of(self, number: int, unit: Unit) -> list[Piece]:
        """All pieces of a unit, with `at` counted from the start of its slot."""
        return [
            Piece(one.file, one.offset, one.nbytes, region.at + one.at, one.checksum)
            for region, pieces in zip(unit.regions, self.pieces[number], strict=True)
            for one in pieces
        ]


def find_origins(
    units: Sequence[Unit], names: Mapping[int, str], checkpoint: Checkpoint | None, folder: Path
) -> Origins:
    """Find every region in the checkpoint, or put it into a store under `folder`. Writes nothing but the store."""
    found = [[_in_checkpoint(region, names, checkpoint) for region in unit.regions] for unit in units]
    missing = [
        (number, [place for place, pieces in enumerate(parts) if pieces is None]) for number, parts in enumerate(found)
    ]
    missing = [(number, places) for number, places in missing if places]
    store = None
    if missing:
        contents = [
            Content(f"layer-{number:04d}.weights", tuple(units[number].regions[place].raw() for place in places))
            for number, places in missing
        ]
        store = open_store(folder, contents)
        for (number, places), file in zip(missing, store.pieces, strict=True):
            for place, pieces in zip(places, file, strict=True):
                found[number][place] = list(pieces)
    every_piece = [[list(region or ()) for region in unit] for unit in found]
    stored = sum(units[number].regions[place].nbytes for number, places in missing for place in places)
    every = sum(region.nbytes for unit in units for region in unit.regions)
    return Origins(every_piece, store, every - stored, stored)


def _in_checkpoint(region: Region, names: Mapping[int, str], checkpoint: Checkpoint | None) -> list[Piece] | None:
    """The pieces of a storage that tensors of the checkpoint fill side by side and bit for bit; None otherwise."""
    if checkpoint is None:
        return None
    raw: torch.Tensor | None = None
    pieces: list[Piece] = []
    end = 0
    for view, tensor in sorted(zip(region.views, region.tensors, strict=True), key=lambda pair: pair[0].offset):
        start = view.offset * view.dtype.itemsize
        found = checkpoint.holding(names.get(id(tensor), ""), tensor) if tensor.is_contiguous() else None
        if start != end or found is None or found.dtype != tensor.dtype:
            return None
        raw = region.raw() if raw is None else raw
        end = start + tensor.nbytes
        pieces += cut(found.file.absolute(), found.offset, start, raw[start:end])
    return pieces if end == region.nbytes else None
