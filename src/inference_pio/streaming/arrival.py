"""Arrivals: the weights of a model that is being loaded come from its checkpoint one by one, as they are wanted."""

from __future__ import annotations

import itertools
import os
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
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
CHUNK_BYTES = 8 * 2**20
"""Summed, and on its way to a GPU, at one time; what follows it is read meanwhile, of other tensors too."""
CHUNKS = 10
"""Read at one time: so that all threads have two pieces, also where tensors are small."""
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
        self._copied: deque[torch.cuda.Event] = deque()

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
        """Let tensors have the bytes that they wait for; `summed`: with their checksums, for the way back.

        The next ones are read while one lands: a disk rests neither between tensors nor for small ones.
        """
        waiting = {id(mark): (tensor, mark) for tensor in tensors if (mark := awaited_of(tensor)) is not None}
        coming = (Coming(mark, self.device, summed, tensor=tensor) for tensor, mark in waiting.values())
        for one in self._landed(coming):
            assert one.tensor is not None
            one.tensor.data, one.mark.here = one.mark.view.on(one.whole().untyped_storage()), True

    def finish(self, model: nn.Module) -> None:
        """Bring all that still waits; no tensor tells any more where it came from."""
        self.bring(tensors_of(model))
        for tensor in tensors_of(model):
            unmark(tensor)

    def close(self) -> None:
        self._reader.close()
        self._slabs.clear()

    # ------------------------------------------------------------------ tensors on their way

    def _on_host(self, mark: Awaited, target: torch.Tensor | None) -> torch.Tensor:
        alone = Coming(mark, torch.device("cpu"), summed=True, target=target, in_pieces=target is None)
        (one,) = self._landed([alone])
        return one.whole()

    def _landed(self, coming: Iterable[Coming]) -> Iterator[Coming]:
        """Tensors in their order, each when all its bytes are there. Raises CorruptFile."""
        try:
            with closing(self._chunks(coming)) as chunks:
                for chunk in chunks:
                    chunk.land()
                    if not chunk.of.on_host:
                        self._copied.append(torch.cuda.current_stream(self.device).record_event())
                    self.read_bytes += chunk.nbytes
                    self._told(self.read_bytes)
                    if chunk.last:
                        yield chunk.of
        except StreamError as error:
            raise CorruptFile(f"the weights of the model cannot be read to their end ({error})") from error
        finally:
            while self._copied:  # what comes next goes through the same slabs
                self._copied.popleft().synchronize()

    def _chunks(self, coming: Iterable[Coming]) -> Generator[Chunk]:
        """Chunks on the host in their order, while a few more are read. They are landed in the thread that asks."""
        begun: deque[Chunk] = deque()
        slabs = itertools.cycle(self._slabs_for())
        try:
            for one in coming:
                one.begin()
                cut = list(_cut(one.parts)) or [(0, [])]
                for number, (start, pieces) in enumerate(cut):
                    if len(begun) == CHUNKS:
                        yield _arrived(begun)
                    if len(self._copied) + len(begun) >= CHUNKS:
                        self._copied.popleft().synchronize()  # its slab is filled anew
                    nbytes = sum(piece.nbytes for piece in pieces)
                    host = one.raw[start : start + nbytes] if one.on_host else next(slabs).bytes[:nbytes]
                    last = number == len(cut) - 1
                    begun.append(Chunk(one, start, pieces, host, self._reader.start(pieces, host), last))
            while begun:
                yield _arrived(begun)
        finally:
            for left in begun:  # nothing is written any more to what others will use
                left.reading.give_up()

    def _slabs_for(self) -> list[Pinned]:
        if not self._slabs and self.device.type != "cpu":
            self._slabs = [Pinned(CHUNK_BYTES) for _ in range(CHUNKS)]
        return self._slabs


@dataclass
class Coming:
    """A tensor on its way to a device, as bytes of its checkpoint side by side; `whole` when all of them are there."""

    mark: Awaited
    device: torch.device
    summed: bool
    target: torch.Tensor | None = None
    in_pieces: bool = False
    tensor: torch.Tensor | None = None
    checksum: int = 0

    def __post_init__(self) -> None:
        self.kinds = {one.dtype for _, one in self.mark.parts}
        self.cast = bool(self.mark.parts) and self.kinds != {self.mark.view.dtype}

    @property
    def parts(self) -> Parts:
        """What is read in chunks; parts of several dtypes come in one go, when they are wanted."""
        if not self.cast:
            return self.mark.parts
        return _side_by_side([one for _, one in self.mark.parts]) if len(self.kinds) == 1 else ()

    @property
    def on_host(self) -> bool:
        return self.device.type == "cpu"

    def begin(self) -> None:
        """Room for the bytes, as late as can be."""
        if self.target is not None and not self.cast:
            self.raw = self.target
            return
        with torch.inference_mode(False):
            total = sum(one.nbytes for _, one in self.parts)
            self.raw = torch.empty(total, dtype=torch.uint8, device=self.device)

    def whole(self) -> torch.Tensor:
        """The bytes (flat uint8) in the dtype that the model has the tensor in."""
        raw = self.raw
        del self.raw  # what it is made of need not outlive it
        if self.cast and len(self.kinds) == 1:
            raw = raw.view(*self.kinds).to(self.mark.view.dtype).view(torch.uint8)
        elif self.cast:
            raw = self.mark.again().to(self.device)
        elif self.mark.nbytes and not self.mark.parts:
            raw = self.mark.read(None).to(self.device)
        if self.summed and self.cast:
            self.checksum = zlib.crc32(raw.cpu().numpy().data)
        if self.summed and (self.mark.parts or not self.mark.nbytes):
            self.mark.checksum = self.checksum
        return raw if self.target is None or raw is self.target else self.target.copy_(raw)


@dataclass(frozen=True)
class Chunk:
    """A stretch of a tensor on its way to the host; `last` of its tensor's."""

    of: Coming
    start: int
    pieces: list[Piece]
    host: torch.Tensor
    reading: Reading
    last: bool

    @property
    def nbytes(self) -> int:
        return len(self.host)

    def land(self) -> None:
        """It is on the host: sum it, and send it on to a GPU. Others are read meanwhile."""
        one = self.of
        if one.summed and not one.cast:
            one.checksum = zlib.crc32(self.host.numpy().data, one.checksum)
        if one.in_pieces and not one.cast:
            _sum_pieces(one.mark, self.start, self.pieces, self.host)
        if not one.on_host:
            one.raw[self.start : self.start + self.nbytes].copy_(self.host, non_blocking=True)


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


def _arrived(begun: deque[Chunk]) -> Chunk:
    """The first of the chunks, when it is there; while it is waited for, it is still among them."""
    begun[0].reading.wait()
    return begun.popleft()


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
