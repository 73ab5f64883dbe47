"""Arrivals: the weights of a model that is being loaded come from its checkpoint one by one, as they are wanted."""

from __future__ import annotations

import itertools
import os
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from inference_pio.errors import CorruptFile, StreamError
from inference_pio.streaming.aside import Aside
from inference_pio.streaming.pieces import PIECE_BYTES as STREAMED_BYTES
from inference_pio.streaming.pieces import Piece
from inference_pio.streaming.pinned import Pinned
from inference_pio.streaming.reader import Reader, Reading
from inference_pio.undo.awaited import MARK, Awaited, awaited_of, loading, unmark
from inference_pio.undo.checkpoint import TensorInFile
from inference_pio.undo.parked import View
from inference_pio.undo.slots import tensors_of

PIECE_BYTES = 4 * 2**20
"""Read in one go by one thread."""
CHUNK_BYTES = 16 * 2**20
"""Summed, and on its way to a GPU, at one time; what follows it is read meanwhile."""
CHUNKS = 3
MOST_THREADS = 8
Parts = Sequence[tuple[int, TensorInFile]]
Told = Callable[[int], object]


class Arrivals:
    """Brings tensors' bytes to where they belong; `read_bytes` counts them.

    Nothing refers to the tensors themselves: whoever does would have to be asked before their memory is let go.
    """

    def __init__(self, device: torch.device, told: Told = lambda nbytes: None) -> None:
        self.device, self.read_bytes, self._told = device, 0, told
        self.aside: Aside | None = None
        self._reader = Reader(min(MOST_THREADS, os.cpu_count() or 1), PIECE_BYTES, verify="size")
        self._slabs: list[Pinned] = []

    def await_tensor(self, tensor: torch.Tensor, parts: Parts) -> torch.Tensor:
        """A tensor that will look as this one of the meta device does, on the model's own; it costs one number."""
        view = View(tensor.dtype, self.device, tuple(tensor.shape), _packed(tensor.shape), 0)
        data = view.stand_in()
        waiting = nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
        vars(waiting).update(vars(tensor))
        again = Again(tuple(parts), view.dtype)
        mark = Awaited(view, again.parts, lambda target: self._on_host(mark, target), again, data)
        setattr(waiting, MARK, mark)
        return waiting

    def bring(self, tensors: Iterable[torch.Tensor], *, summed: bool = False) -> None:
        """Let tensors have the bytes that they wait for; `summed`: with their checksums, for the way back."""
        for tensor in tensors:
            mark = awaited_of(tensor)
            if mark is not None:
                comes = mark.parts or not mark.nbytes
                raw = self._fetch(mark, self.device, summed) if comes else mark.read(None).to(self.device)
                storage = raw.untyped_storage()
                tensor.data, mark.here = mark.view.on(storage), True

    def finish(self, model: nn.Module) -> None:
        """Bring all that still waits; no tensor tells any more where it came from."""
        self.bring(tensors_of(model))
        for tensor in tensors_of(model):
            unmark(tensor)

    def close(self) -> None:
        self._reader.close()
        self._slabs.clear()

    # ------------------------------------------------------------------ one tensor

    def _on_host(self, mark: Awaited, target: torch.Tensor | None) -> torch.Tensor:
        return self._fetch(mark, torch.device("cpu"), summed=True, target=target, in_pieces=target is None)

    def _fetch(
        self, mark: Awaited, device: torch.device, summed: bool, target: torch.Tensor | None = None,
        *, in_pieces: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """A tensor's bytes (flat uint8) on a device, in the dtype that the model has it in."""
        kinds = {one.dtype for _, one in mark.parts}
        cast = kinds != {mark.view.dtype}
        try:
            if not cast:
                return self._copied(mark, mark.parts, device, summed, target, in_pieces=in_pieces)
            if len(kinds) == 1:
                stored = self._copied(mark, _side_by_side([one for _, one in mark.parts]), device, summed=False)
                raw = stored.view(kinds.pop()).to(mark.view.dtype).view(torch.uint8)
            else:
                raw = mark.again().to(device)
        except StreamError as error:
            raise CorruptFile(f"the weights of the model cannot be read to their end ({error})") from error
        if summed:
            mark.checksum = zlib.crc32(raw.cpu().numpy().data)
        return raw if target is None else target.copy_(raw)

    def _copied(
        self, mark: Awaited, parts: Parts, device: torch.device, summed: bool, target: torch.Tensor | None = None,
        *, in_pieces: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """Files' bytes side by side. They are summed in this thread while others read what comes next."""
        total = sum(one.nbytes for _, one in parts)
        with torch.inference_mode(False):
            raw = torch.empty(total, dtype=torch.uint8, device=device) if target is None else target
        checksum = 0
        for start, pieces, chunk in self._chunks(parts, raw):
            if summed:
                checksum = zlib.crc32(chunk.numpy().data, checksum)
            if in_pieces:
                _sum_pieces(mark, start, pieces, chunk)
            if device.type != "cpu":
                raw[start : start + len(chunk)].copy_(chunk, non_blocking=True)
            self.read_bytes += len(chunk)
            self._told(self.read_bytes)
        if summed:
            mark.checksum = checksum
        return raw

    def _chunks(self, parts: Parts, raw: torch.Tensor) -> Iterator[tuple[int, list[Piece], torch.Tensor]]:
        """Chunks on the host in their order, each with its place; a few are read at one time."""
        begun: deque[tuple[int, list[Piece], torch.Tensor, Reading]] = deque()
        copied: deque[torch.cuda.Event] = deque()
        slabs = itertools.cycle(self._slabs_for(raw)) if raw.device.type != "cpu" else None
        for start, pieces in _cut(parts):
            if len(begun) == CHUNKS:
                yield _arrived(begun.popleft())
                if slabs is not None:
                    copied.append(torch.cuda.current_stream(raw.device).record_event())
            nbytes = sum(piece.nbytes for piece in pieces)
            if slabs is not None and len(copied) + len(begun) >= CHUNKS:
                copied.popleft().synchronize()  # its slab is filled anew
            target = raw[start : start + nbytes] if slabs is None else next(slabs).bytes[:nbytes]
            begun.append((start, pieces, target, self._reader.start(pieces, target)))
        while begun:
            yield _arrived(begun.popleft())
        if slabs is not None:
            torch.cuda.current_stream(raw.device).synchronize()  # the next tensor's chunks go through the same slabs

    def _slabs_for(self, raw: torch.Tensor) -> list[Pinned]:
        if not self._slabs:
            self._slabs = [Pinned(CHUNK_BYTES) for _ in range(CHUNKS)]
        return self._slabs


@dataclass(frozen=True)
class Again:
    """Reads a tensor from its checkpoint when the loading is long over: flat uint8, as the model has it."""

    parts: tuple[tuple[int, TensorInFile], ...]
    dtype: torch.dtype

    def __call__(self) -> torch.Tensor:
        flats = [one.read().reshape(-1).to(self.dtype).view(torch.uint8) for _, one in self.parts]
        return flats[0] if len(flats) == 1 else torch.cat(flats)


_arrivals: weakref.WeakKeyDictionary[nn.Module, Arrivals] = weakref.WeakKeyDictionary()


def arrivals_of(model: nn.Module) -> Arrivals | None:
    """What brings the weights of a model, as long as it is being loaded."""
    return _arrivals.get(model)


@contextmanager
def arriving(model: nn.Module, arrivals: Arrivals) -> Iterator[None]:
    """In here a model is being loaded."""
    _arrivals[model] = arrivals
    try:
        with loading():
            yield
    finally:
        del _arrivals[model]
        arrivals.close()


def _arrived(chunk: tuple[int, list[Piece], torch.Tensor, Reading]) -> tuple[int, list[Piece], torch.Tensor]:
    start, pieces, target, reading = chunk
    reading.wait()
    return start, pieces, target


def _sum_pieces(mark: Awaited, start: int, pieces: Sequence[Piece], chunk: torch.Tensor) -> None:
    """Checksums of the pieces in which a stream will read the same bytes, if they are left where they are."""
    data = chunk.numpy().data
    for piece in pieces:
        for first in range(piece.at, piece.at + piece.nbytes, STREAMED_BYTES):
            last = min(first + STREAMED_BYTES, piece.at + piece.nbytes)
            mark.sums[start + first, last - first] = zlib.crc32(data[first:last])


def _cut(parts: Parts) -> Iterator[tuple[int, list[Piece]]]:
    """Pieces in chunks, with the place of each chunk; within a chunk they count from its start."""
    start, end, pieces = 0, 0, list[Piece]()
    for at, one in parts:
        for first in range(0, one.nbytes, PIECE_BYTES):
            nbytes = min(PIECE_BYTES, one.nbytes - first)
            if end - start + nbytes > CHUNK_BYTES:
                yield start, pieces
                start, pieces = end, []
            pieces.append(Piece(Path(one.file), one.offset + first, nbytes, at + first - start, checksum=0))
            end = at + first + nbytes
    if pieces:
        yield start, pieces


def _side_by_side(parts: Sequence[TensorInFile]) -> list[tuple[int, TensorInFile]]:
    """Parts with their places where each takes what it has in its file."""
    ends = itertools.accumulate((one.nbytes for one in parts), initial=0)
    return list(zip(ends, parts, strict=False))


def _packed(shape: torch.Size) -> tuple[int, ...]:
    """The strides of a tensor without gaps."""
    return torch.empty(shape, device="meta").stride()
