"""Tensors get the bytes that they wait for, in chunks and in the dtype that is asked for; what is cut short is told."""

from __future__ import annotations

import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from inference_pio.errors import CorruptFile
from inference_pio.streaming import arrival
from inference_pio.streaming.arrival import Arrivals, arrivals_of, arriving
from inference_pio.streaming.open_file import Bytes, OpenFile
from inference_pio.streaming.pieces import cut
from inference_pio.streaming.reader import Reading
from inference_pio.undo.awaited import awaited_of, origin_of
from inference_pio.undo.checkpoint import read_header
from inference_pio.undo.stored_bytes import stored_bytes

CPU = torch.device("cpu")


def stored(folder: Path, *tensors: torch.Tensor) -> Path:
    file = folder / "model.safetensors"
    save_file({str(number): tensor for number, tensor in enumerate(tensors)}, file)
    return file


def waiting_for(file: Path, arrivals: Arrivals, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A parameter that all tensors of a file fill, one behind another."""
    parts, end = [], 0
    for _, one in sorted(read_header(file).items()):
        parts.append((end * dtype.itemsize, one))
        end += one.nbytes // one.dtype.itemsize
    return arrivals.await_tensor(nn.Parameter(torch.empty(shape, dtype=dtype, device="meta")), parts)


@pytest.mark.parametrize("sizes", [(1, 1), (64, 100), (100, 100), (4096, 8192)])
def test_pieces_and_chunks_of_every_size_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int]
) -> None:
    monkeypatch.setattr(arrival, "PIECE_BYTES", sizes[0])
    monkeypatch.setattr(arrival, "CHUNK_BYTES", sizes[1])
    parts = [torch.randn(3, 11), torch.randn(3, 11)]
    arrivals = Arrivals(CPU)
    tensor = waiting_for(stored(tmp_path, *parts), arrivals, (2, 3, 11), torch.float32)
    assert awaited_of(tensor) is not None
    arrivals.bring([tensor, tensor], summed=True)
    arrivals.close()
    assert torch.equal(tensor, torch.stack(parts))
    assert awaited_of(tensor) is None
    mark = origin_of(tensor)
    assert mark is not None
    assert mark.checksum == zlib.crc32(tensor.detach().numpy().tobytes())
    assert arrivals.read_bytes == tensor.nbytes
    assert torch.equal(mark.again().view(torch.float32).reshape(tensor.shape), tensor)


def test_what_is_read_for_a_stream_is_summed_in_its_pieces_and_may_have_a_target(tmp_path: Path) -> None:
    parts = [torch.randn(700, 512), torch.randn(700, 512)]
    arrivals = Arrivals(CPU)
    file = stored(tmp_path, *parts)
    tensor = waiting_for(file, arrivals, (2, 700, 512), torch.float32)
    mark = awaited_of(tensor)
    assert mark is not None
    raw = mark.read(None)
    half = len(raw) // 2
    wanted = [*cut(file, 0, 0, raw[:half]), *cut(file, 0, half, raw[half:])]
    assert len(wanted) == 4
    assert mark.sums == {(piece.at, piece.nbytes): piece.checksum for piece in wanted}
    known = dict.fromkeys(mark.sums, 7)
    assert {piece.checksum for piece in cut(file, 0, half, raw[half:], sums=known)} == {7}
    target = torch.zeros_like(raw)
    assert mark.read(target) is target
    assert torch.equal(target, raw)
    arrivals.close()


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [(64, 100), (4096, 8192), (arrival.PIECE_BYTES, arrival.CHUNK_BYTES)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_reach_a_gpu_through_slabs_that_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(arrival, "PIECE_BYTES", sizes[0])
    monkeypatch.setattr(arrival, "CHUNK_BYTES", sizes[1])
    part = torch.randn(301, 77)
    arrivals = Arrivals(torch.device("cuda", 0))
    file = stored(tmp_path, part)
    tensors = [waiting_for(file, arrivals, (301, 77), dtype) for _ in range(3)]
    arrivals.bring(tensors, summed=True)
    arrivals.close()
    for tensor in tensors:
        assert tensor.device == torch.device("cuda", 0)
        assert torch.equal(tensor.cpu(), part.to(dtype))
        mark = origin_of(tensor)
        assert mark is not None
        assert mark.checksum == zlib.crc32(mark.again().numpy().tobytes())


class SlowStore:
    """Each read takes a while, as one of a disk; counts bytes that are on their way, and the most at one time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.seconds, self.reads, self.at_once, self.most = seconds, 0, 0, 0
        self._counting, self._read = threading.Lock(), OpenFile.read
        monkeypatch.setattr(OpenFile, "read", lambda *given: self.read(*given))
        monkeypatch.setattr("os.cpu_count", lambda: 8)

    def read(self, file: OpenFile, offset: int, target: Bytes, slab: Bytes) -> None:
        with self._counting:
            self.reads, self.at_once = self.reads + 1, self.at_once + 1
            self.most = max(self.most, self.at_once)
        try:
            time.sleep(self.seconds)
            self._read(file, offset, target, slab)
        finally:
            with self._counting:
                self.at_once -= 1


def test_small_tensors_are_read_side_by_side_and_landing_hides_behind_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """48 tensors, a read each: by eight threads six turns of 20 ms, in which what lands of each, 2 ms, is hidden."""
    store = SlowStore(monkeypatch, 0.02)
    parts = [torch.randn(3, 11) for _ in range(48)]
    file = stored(tmp_path, *parts)
    arrivals = Arrivals(CPU, lambda nbytes: time.sleep(0.002))
    waiting = [
        arrivals.await_tensor(nn.Parameter(torch.empty(3, 11, device="meta")), ((0, one),))
        for _, one in sorted(read_header(file).items(), key=lambda item: int(item[0]))
    ]
    start = time.perf_counter()
    arrivals.bring(waiting)
    took = time.perf_counter() - start
    arrivals.close()
    assert store.reads == 48
    assert 6 <= store.most <= 8
    assert all(torch.equal(one, part) for one, part in zip(waiting, parts, strict=True))
    reading, landing = 6 * 0.02, 48 * 0.002
    assert took < max(reading, landing) + 0.2 * min(reading, landing) + 0.05, "one by one it would be a second"


def test_at_most_ten_chunks_are_on_their_way_and_none_is_written_when_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival, "CHUNK_BYTES", 256)
    monkeypatch.setattr(arrival, "PIECE_BYTES", 128)
    store = SlowStore(monkeypatch, 0.001)
    file = stored(tmp_path, *(torch.randn(64, 8) for _ in range(4)))
    arrivals = Arrivals(CPU)
    start, begun, ended = arrivals._reader.start, [0], [0]

    def counted(pieces: Any, target: torch.Tensor) -> Reading:
        reading, begun[0] = start(pieces, target), begun[0] + len(target)
        return reading

    def told(nbytes: int) -> None:
        ended[0] = nbytes
        assert begun[0] - ended[0] <= arrival.CHUNKS * arrival.CHUNK_BYTES

    monkeypatch.setattr(arrivals._reader, "start", counted)
    arrivals._told = told
    one, other = (waiting_for(file, arrivals, (4, 64, 8), torch.float32) for _ in range(2))
    arrivals.bring([one])
    assert ended[0] == one.nbytes
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)
    arrivals._told = lambda nbytes: None
    with pytest.raises(CorruptFile, match="cannot be read to their end"):
        arrivals.bring([other])
    assert store.at_once == 0
    assert arrivals._reader._work.tasks.empty()
    arrivals.close()


def test_another_dtype_is_made_as_it_comes(tmp_path: Path) -> None:
    part = torch.randn(5, 8)
    arrivals = Arrivals(CPU)
    tensor = waiting_for(stored(tmp_path, part), arrivals, (5, 8), torch.bfloat16)
    arrivals.bring([tensor], summed=True)
    arrivals.close()
    assert torch.equal(tensor, part.bfloat16())
    mark = origin_of(tensor)
    assert mark is not None
    assert mark.checksum == zlib.crc32(mark.again().numpy().tobytes())


def test_a_file_that_is_cut_short_is_an_error_and_no_numbers(tmp_path: Path) -> None:
    file = stored(tmp_path, torch.randn(50, 8))
    arrivals = Arrivals(CPU)
    tensor = waiting_for(file, arrivals, (50, 8), torch.float32)
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 10)
    with pytest.raises(CorruptFile, match="cannot be read to their end"):
        arrivals.bring([tensor])
    arrivals.close()
    assert awaited_of(tensor) is not None


def test_a_model_knows_its_arrivals_while_it_loads_and_no_thread_stays(tmp_path: Path) -> None:
    before = threading.active_count()
    model = nn.Linear(8, 50, bias=False)
    arrivals = Arrivals(CPU)
    model.weight = waiting_for(stored(tmp_path, torch.randn(50, 8)), arrivals, (50, 8), torch.float32)  # type: ignore[assignment]
    assert stored_bytes(model) == 1600
    with arriving(model, arrivals):
        assert arrivals_of(model) is arrivals
        arrivals.finish(model)
    assert arrivals_of(model) is None
    assert origin_of(model.weight) is None
    assert threading.active_count() == before
