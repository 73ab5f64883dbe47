"""Threads bring pieces, checked; what goes wrong reaches whoever waits, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import threading
import time
import zlib
from pathlib import Path

import psutil
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from inference_pio.errors import StreamError
from inference_pio.streaming.open_file import OpenFile
from inference_pio.streaming.reader import Reader, Verify
from tests.streaming.help import flip, random_bytes, weights_in


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("direct", [True, False])
def test_what_is_read_is_what_was_written(tmp_path: Path, threads: int, direct: bool) -> None:
    readers = Reader(threads, 1000, direct=direct)
    files = [weights_in(tmp_path, seed=seed) for seed in range(3)]
    targets = [torch.zeros(10_000, dtype=torch.uint8) for _ in files]
    readings = [readers.start(pieces, target) for (_, pieces), target in zip(files, targets, strict=True)]
    for seed, (reading, target) in enumerate(zip(readings, targets, strict=True)):
        reading.wait()
        assert torch.equal(target, random_bytes(10_000, seed))
    assert ("direct" in readers.backend) == direct
    readers.close()


def test_nothing_is_read_at_once() -> None:
    reader = Reader(1, 1000)
    reader.start([], torch.empty(0, dtype=torch.uint8)).wait()
    reader.close()


@pytest.mark.parametrize(
    ("verify", "before_first", "after_first"),
    [("always", True, True), ("first", True, True), ("size", False, False)],
)
def test_a_flipped_byte_is_told_as_far_as_checksums_are_compared(
    tmp_path: Path, verify: Verify, before_first: bool, after_first: bool
) -> None:
    target = torch.zeros(10_000, dtype=torch.uint8)
    for flips_first, told in ((True, before_first), (False, after_first)):
        file, pieces = weights_in(tmp_path)
        reader = Reader(2, 1000, verify=verify)
        if not flips_first:
            reader.start(pieces, target).wait()
        flip(file, 5000)
        if told:
            with pytest.raises(StreamError, match=r"damaged: 1000 bytes at 4100"):
                reader.start(pieces, target).wait()
            flip(file, 5000)
        reader.start(pieces, target).wait()
        reader.close()


@pytest.mark.parametrize(("verify", "compared"), [("first", 10), ("always", 30), ("size", 0)])
def test_first_compares_once_and_always_every_time(
    tmp_path: Path, verify: Verify, compared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pieces = weights_in(tmp_path)
    calls: list[int] = []

    def counted(data: memoryview) -> int:
        calls.append(len(data))
        return checksum(data)

    checksum = zlib.crc32
    monkeypatch.setattr(zlib, "crc32", counted)
    reader = Reader(1, 1000, verify=verify)
    for _ in range(3):
        reader.start(pieces, torch.zeros(10_000, dtype=torch.uint8)).wait()
    reader.close()
    assert len(calls) == compared


def test_a_file_cut_short_fails_the_reading_and_the_reader_goes_on(tmp_path: Path) -> None:
    file, pieces = weights_in(tmp_path)
    _, others = weights_in(tmp_path, seed=1)
    reader = Reader(2, 1000)
    target = torch.zeros(10_000, dtype=torch.uint8)
    reader.start(pieces, target).wait()
    os.truncate(file, 3000)
    with pytest.raises(StreamError, match="cut short"):
        reader.start(pieces, target).wait()
    reader.start(others, target).wait()
    assert torch.equal(target, random_bytes(10_000, 1))
    reader.close()


def test_reading_now_compares_every_checksum(tmp_path: Path) -> None:
    file, pieces = weights_in(tmp_path)
    reader = Reader(1, 1000, verify="size")
    target = torch.zeros(10_000, dtype=torch.uint8)
    reader.read_now(pieces, target)
    assert torch.equal(target, random_bytes(10_000))
    flip(file, 200)
    with pytest.raises(StreamError, match="damaged"):
        reader.read_now(pieces, target)
    reader.close()


def test_closing_ends_threads_and_files_and_fails_what_was_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = psutil.Process()
    threads, files = threading.active_count(), process.num_fds()
    _, pieces = weights_in(tmp_path)
    reader = Reader(2, 1000)
    assert threading.active_count() == threads + 2
    read = OpenFile.read
    monkeypatch.setattr(OpenFile, "read", lambda *given: (time.sleep(0.05), read(*given)))
    reading = reader.start(pieces, torch.zeros(10_000, dtype=torch.uint8))
    reader.close()
    reader.close()
    with pytest.raises(StreamError, match="closed"):
        reading.wait()
    with pytest.raises(StreamError, match="closed"):
        reader.start(pieces, torch.zeros(10_000, dtype=torch.uint8)).wait()
    with pytest.raises(StreamError, match="closed"):
        reader.read_now(pieces, torch.zeros(10_000, dtype=torch.uint8))
    assert (threading.active_count(), process.num_fds()) == (threads, files)


def test_a_reader_that_nobody_has_any_more_ends_its_threads(tmp_path: Path) -> None:
    others = set(threading.enumerate())
    _, pieces = weights_in(tmp_path)
    reader = Reader(2, 1000)
    reader.start(pieces, torch.zeros(10_000, dtype=torch.uint8)).wait()
    del reader
    gc.collect()
    assert set(threading.enumerate()) <= others


def test_what_nobody_wants_any_more_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, pieces = weights_in(tmp_path)
    read, calls = OpenFile.read, []
    monkeypatch.setattr(OpenFile, "read", lambda *given: (calls.append(1), time.sleep(0.05), read(*given)))
    reader = Reader(1, 1000)
    reading = reader.start(pieces, torch.zeros(10_000, dtype=torch.uint8))
    reading.give_up()
    assert reading.done
    assert len(calls) <= 2
    reader.close()


def test_memory_of_a_target_is_free_once_it_is_read(tmp_path: Path) -> None:
    _, pieces = weights_in(tmp_path)
    reader = Reader(1, 1000)
    target = torch.zeros(10_000, dtype=torch.uint8)
    memory = StorageWeakRef(target.untyped_storage())
    reader.start(pieces, target).wait()
    del target
    deadline = time.monotonic() + 10
    while not memory.expired() and time.monotonic() < deadline:  # a thread may stand between the last piece and its end
        time.sleep(0.01)
    assert memory.expired()
    reader.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_is_told_and_leaves_its_parents_reader_alone(tmp_path: Path) -> None:
    _, pieces = weights_in(tmp_path)
    reader = Reader(1, 1000)
    target = torch.zeros(10_000, dtype=torch.uint8)
    reader.start(pieces, target).wait()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            reader.start(pieces, target)
        except StreamError as error:
            code = 0 if "forked" in str(error) else 2
        reader.read_now(pieces, target)
        reader.close()
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    reader.start(pieces, target).wait()
    reader.close()
