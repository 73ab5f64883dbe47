"""What this machine can do at best: bandwidths and matmul rates, against which a model's figures can be held."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from inference_pio.errors import StorageError
from inference_pio.files import require_free_bytes, storage_errors
from inference_pio.measure.target import synchronize

Progress = Callable[[str, float], None]
BLOCK_BYTES = {"cpu": 256 * 2**20, "cuda": 2**30}
"""Several times the last cache of both kinds of device, so that memory is measured and not a cache."""
DISK_BYTES = 128 * 2**20
EDGE = {"cpu": 1024, "cuda": 8192}
SECONDS = 0.4


@dataclass(frozen=True)
class Ceiling:
    """One limit: the best of the tries within a short time; `value` is in `unit`, or None with `method` saying why."""

    name: str
    value: float | None
    unit: str
    method: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_ceilings(
    device: torch.device | str = "cpu", seconds: float = SECONDS, progress: Progress | None = None
) -> list[Ceiling]:
    """Copy and read bandwidth of the device's memory, matmul rates, disk read and, for a GPU, the pinned host link.

    Each takes about `seconds`.
    """
    target = torch.device(device)
    probes = list(_probes(target, seconds))
    found = []
    for number, (name, act) in enumerate(probes):
        if progress:
            progress(name, number / len(probes))
        found.append(act())
    return found


def _probes(device: torch.device, seconds: float) -> Iterator[tuple[str, Callable[[], Ceiling]]]:
    block = _block_bytes(device)
    yield "memory copy", lambda: _copy(device, block, seconds)
    yield "memory read", lambda: _read(device, block, seconds)
    for dtype in (torch.bfloat16, torch.float32):
        yield f"matmul {_word(dtype)}", lambda dtype=dtype: _matmul(device, dtype, seconds)  # type: ignore[misc]
    yield "disk read", _disk_read
    if device.type == "cuda":
        yield "host to device, pinned", lambda: _link(device, block // 4, seconds, to_device=True)
        yield "device to host, pinned", lambda: _link(device, block // 4, seconds, to_device=False)


def _copy(device: torch.device, nbytes: int, seconds: float) -> Ceiling:
    source = torch.ones(nbytes, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    best = _best_seconds(lambda: target.copy_(source), device, seconds)
    return Ceiling(
        "memory copy", 2 * nbytes / best / 1e9, "GB/s", f"tensor copy of {nbytes / 1e6:.0f} MB, read + write"
    )


def _read(device: torch.device, nbytes: int, seconds: float) -> Ceiling:
    source = torch.ones(nbytes // 4, device=device)
    best = _best_seconds(source.sum, device, seconds)
    return Ceiling("memory read", nbytes / best / 1e9, "GB/s", f"sum of {nbytes / 1e6:.0f} MB of float32")


def _matmul(device: torch.device, dtype: torch.dtype, seconds: float) -> Ceiling:
    edge = EDGE["cuda" if device.type == "cuda" else "cpu"]
    left, right = (torch.ones(edge, edge, dtype=dtype, device=device) for _ in range(2))
    best = _best_seconds(lambda: left @ right, device, seconds)
    return Ceiling(f"matmul {_word(dtype)}", 2 * edge**3 / best / 1e12, "TFLOP/s", f"{edge} x {edge} x {edge}")


def _link(device: torch.device, nbytes: int, seconds: float, *, to_device: bool) -> Ceiling:
    host = torch.ones(nbytes, dtype=torch.uint8, pin_memory=True)
    there = torch.ones(nbytes, dtype=torch.uint8, device=device)
    source, target = (host, there) if to_device else (there, host)
    best = _best_seconds(lambda: target.copy_(source, non_blocking=True), device, seconds)
    name = "host to device, pinned" if to_device else "device to host, pinned"
    return Ceiling(name, nbytes / best / 1e9, "GB/s", f"copies of {nbytes / 1e6:.0f} MB")


def _disk_read() -> Ceiling:
    """A file of our own in the temporary folder, its pages dropped from memory before it is read."""
    if not hasattr(os, "posix_fadvise"):
        return Ceiling("disk read", None, "GB/s", "this system cannot drop a file's pages from memory")
    folder = Path(tempfile.gettempdir())
    try:
        require_free_bytes(folder, 2 * DISK_BYTES)
        with storage_errors(folder), tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            seconds = _seconds_of_reading(file.fileno())
    except StorageError as error:
        return Ceiling("disk read", None, "GB/s", str(error))
    method = f"{DISK_BYTES / 1e6:.0f} MB in the temporary folder, dropped from the page cache before"
    return Ceiling("disk read", DISK_BYTES / seconds / 1e9, "GB/s", method)


def _seconds_of_reading(file: int) -> float:
    block = os.urandom(2**20)
    for _ in range(DISK_BYTES // len(block)):
        os.write(file, block)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(file, 0, os.SEEK_SET)
    start = time.perf_counter()
    while os.read(file, 4 * 2**20):
        pass
    return time.perf_counter() - start


def _best_seconds(act: Callable[[], Tensor], device: torch.device, seconds: float) -> float:
    act()  # first touches of memory, and kernels that load themselves
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        synchronize(device)
        start = time.perf_counter()
        act()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def _block_bytes(device: torch.device) -> int:
    """Never more than a tenth of what is free."""
    cuda = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if cuda else psutil.virtual_memory().available
    return min(BLOCK_BYTES["cuda" if cuda else "cpu"], int(free) // 10) // 64 * 64


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
