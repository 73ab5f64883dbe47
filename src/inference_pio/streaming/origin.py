"""Where a unit's bytes are read from: the user's own checkpoint where it has them bit for bit, else a store."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from inference_pio.streaming.pieces import Piece, cut
from inference_pio.streaming.store import Content, Store, open_store
from inference_pio.streaming.units import Region, Unit
from inference_pio.undo.awaited import awaited_of
from inference_pio.undo.checkpoint import Checkpoint, TensorInFile

CutUp = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


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
    units: Sequence[Unit], names: Mapping[int, str], checkpoint: Checkpoint | None, folder: Path, cut_up: CutUp
) -> Origins:
    """Find every region in the checkpoint, or put it into a store under `folder`. Writes nothing but the store.

    `cut_up` gives tensors under the names, and in the parts, that the checkpoint has them in.
    """
    found = [
        [_in_checkpoint(region, names, checkpoint, cut_up) if checkpoint else None for region in unit.regions]
        for unit in units
    ]
    missing = [
        (number, [place for place, pieces in enumerate(parts) if pieces is None]) for number, parts in enumerate(found)
    ]
    missing = [(number, places) for number, places in missing if places]
    store = None
    if missing:
        contents = [
            Content(f"layer-{number:04d}.weights", stretches, stretches.sizes)
            for number, places in missing
            for stretches in [_Stretches([units[number].regions[place] for place in places])]
        ]
        store = open_store(folder, contents)
        for (number, places), file in zip(missing, store.pieces, strict=True):
            parts = iter(file)
            for place in places:
                region = units[number].regions[place]
                found[number][place] = [
                    replace(piece, at=start + piece.at)
                    for start, _ in _apart(region, 0, region.nbytes)
                    for piece in next(parts)
                ]
    every_piece = [[list(region or ()) for region in unit] for unit in found]
    stored = sum(units[number].regions[place].nbytes for number, places in missing for place in places)
    every = sum(region.nbytes for unit in units for region in unit.regions)
    return Origins(every_piece, store, every - stored, stored)


@dataclass(frozen=True)
class _Stretches:
    """The bytes of a few regions, part by part; those of one region at a time are on the host."""

    regions: Sequence[Region]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(end - start for region in self.regions for start, end in _apart(region, 0, region.nbytes))

    def __iter__(self) -> Iterator[torch.Tensor]:
        for region in self.regions:
            raw = region.raw()
            for start, end in _apart(region, 0, region.nbytes):
                yield raw[start:end]
            del raw


def _in_checkpoint(
    region: Region, names: Mapping[int, str], checkpoint: Checkpoint, cut_up: CutUp
) -> list[Piece] | None:
    """The pieces of a storage that tensors of the checkpoint fill side by side and bit for bit; None otherwise."""
    stretches: list[tuple[int, TensorInFile]] = []
    for view, tensor in zip(region.views, region.tensors, strict=True):
        if (waiting := awaited_of(tensor)) is not None:
            if not waiting.parts or any(part.dtype != view.dtype for _, part in waiting.parts):
                return None
            stretches += waiting.parts
            continue
        found = _stretches(tensor, names.get(id(tensor), ""), checkpoint, cut_up) if tensor.is_contiguous() else None
        if found is None:
            return None
        start = view.offset * view.dtype.itemsize
        stretches += [(start + at, one) for at, one in found]
    raw, pieces, end = region.raw(), list[Piece](), 0
    for at, found_there in sorted(stretches, key=lambda pair: pair[0]):
        if at != end:
            return None
        end = at + found_there.nbytes
        for first, last in _apart(region, at, end):
            place = found_there.offset + first - at
            pieces += cut(found_there.file.absolute(), place, first, raw[first:last], sums=region.sums)
    return pieces if end == region.nbytes else None


def _apart(region: Region, start: int, end: int) -> list[tuple[int, int]]:
    """A stretch of a region cut where its parts meet."""
    part = region.nbytes // region.parts
    cuts = [start, *(at for at in range(0, region.nbytes, part) if start < at < end), end]
    return list(itertools.pairwise(cuts))


def _stretches(
    tensor: torch.Tensor, name: str, checkpoint: Checkpoint, cut_up: CutUp
) -> list[tuple[int, TensorInFile]] | None:
    """Where a checkpoint has a tensor: whole, or in parts such as the experts of a layer, each with its place."""
    if (whole := _same(checkpoint, name, tensor)) is not None:
        return [(0, whole)]
    if tensor.dim() < 3 or not name:
        return None
    rows, width = tensor.detach().reshape(-1, tensor.shape[-1]), tensor.shape[-1] * tensor.element_size()
    numbers = torch.arange(len(rows)).reshape(
        *tensor.shape[:-1], 1
    )  # goes the way of the weight, and tells of each row
    found = []
    for part, lines in cut_up({name: numbers}).items():
        first, count = int(lines.flatten()[0]), lines.numel()
        if not torch.equal(lines.flatten(), torch.arange(first, first + count)):
            return None
        there = _same(checkpoint, part, rows[first : first + count])
        if there is None:
            return None
        found.append((first * width, there))
    return found


def _same(checkpoint: Checkpoint, name: str, tensor: torch.Tensor) -> TensorInFile | None:
    found = checkpoint.holding(name, tensor)
    return found if found is not None and found.dtype == tensor.dtype else None
