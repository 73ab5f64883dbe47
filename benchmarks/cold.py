"""Files that no cache holds, and what came from disks since: without both, reads are said of memory."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

DIRECT = getattr(os, "O_DIRECT", 0)
PIECE, THREADS = 4 * 2**20, 8


def forget(file: Path) -> None:
    """Let no cache hold a file."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def forget_all(folder: Path) -> None:
    """Let no cache hold the files below a folder."""
    for file in folder.rglob("*"):
        if file.is_file():
            forget(file)


def read_bytes() -> int:
    """What this process has read from disks so far."""
    told = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(told["read_bytes"])


def direct_read_rate(path: Path) -> float:
    """Bytes a second of a file read past the page cache, by eight threads of 4 MiB each. Raises OSError where the disk
    allows no such reads.
    """
    size = path.stat().st_size // PIECE * PIECE
    descriptor = os.open(path, os.O_RDONLY | DIRECT)
    try:
        os.preadv(descriptor, [mmap.mmap(-1, PIECE)], 0)
        left, faults, turn = iter(range(0, size, PIECE)), list[OSError](), threading.Lock()
        threads = [threading.Thread(target=_read, args=(descriptor, left, turn, faults)) for _ in range(THREADS)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if faults:
            raise faults[0]
        return size / (time.perf_counter() - start)
    finally:
        os.close(descriptor)


def _read(descriptor: int, left: Iterable[int], turn: threading.Lock, faults: list[OSError]) -> None:
    room, places = mmap.mmap(-1, PIECE), iter(left)  # pages of their own: aligned as such reads ask for
    try:
        while True:
            with turn:
                place = next(places, None)
            if place is None:
                return
            os.preadv(descriptor, [room], place)
    except OSError as fault:
        faults.append(fault)
