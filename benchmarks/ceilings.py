"""The machine's ceilings, on random data (zeros run faster than real data): printed first, kept with results."""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import cold

Ceilings = dict[str, dict[str, Any]]
MEGABYTE = 10**6
LEAST_TRIES, SECONDS = 5, 0.4


def measure(device: torch.device, *, smoke: bool = False) -> Ceilings:
    """Memory copy and read, bfloat16 matmul, disk and, for a GPU, the host link; each median of its tries.

    What cannot be measured has the value None, and says why.
    """
    block = 4 * MEGABYTE if smoke else (2000 * MEGABYTE if device.type == "cuda" else 200 * MEGABYTE)
    seconds = 0.01 if smoke else SECONDS
    found: Ceilings = {}
    _note(found, "memory copy", "GB/s", lambda: copy(device, block, seconds))
    _note(found, "memory read", "GB/s", lambda: read(device, block, seconds))
    _note(found, "matmul bfloat16", "TFLOP/s", lambda: matmul(device, _edge(device, smoke), seconds))
    if device.type == "cuda":
        for pinned in (True, False):
            word = "pinned" if pinned else "pageable"
            _note(found, f"host to device, {word}", "GB/s", lambda p=pinned: link(device, block // 8, p, True, seconds))
        _note(found, "device to host, pinned", "GB/s", lambda: link(device, block // 8, True, False, seconds))
        torch.cuda.empty_cache()
    every = functools.cache(lambda: disk((5 if smoke else 512) * MEGABYTE))
    for number, name in enumerate(("disk write", "disk read", "disk read, direct")):
        _note(found, name, "GB/s", lambda n=number: _known(every()[n]))
    return found


def copy(device: torch.device, nbytes: int, seconds: float = SECONDS) -> float:
    """GB/s, read and written bytes together."""
    source = _random(device, nbytes)
    target = torch.empty_like(source)
    return 2 * nbytes / median_seconds(lambda: target.copy_(source), device, seconds) / 1e9


def read(device: torch.device, nbytes: int, seconds: float = SECONDS) -> float:
    """GB/s of a reduction over rows, which writes next to nothing."""
    rows = _random(device, nbytes).view(torch.bfloat16)
    rows = rows[: rows.numel() // 4000 * 4000].view(-1, 4000)
    return rows.numel() * 2 / median_seconds(lambda: rows.amax(1), device, seconds) / 1e9


def matmul(device: torch.device, edge: int, seconds: float = SECONDS) -> float:
    """TFLOP/s of a square bfloat16 product."""
    left, right = (torch.randn(edge, edge, device=device).bfloat16() for _ in range(2))
    out = torch.empty_like(left)
    return 2 * edge**3 / median_seconds(lambda: torch.mm(left, right, out=out), device, seconds) / 1e12


def link(device: torch.device, nbytes: int, pinned: bool, to_device: bool, seconds: float = SECONDS) -> float:
    """GB/s between host and device."""
    host = torch.randint(0, 256, (nbytes,), dtype=torch.uint8)
    host = host.pin_memory() if pinned else host
    there = torch.empty(nbytes, dtype=torch.uint8, device=device)
    source, target = (host, there) if to_device else (there, host)
    return nbytes / median_seconds(lambda: target.copy_(source, non_blocking=pinned), device, seconds) / 1e9


def _known(rate: float | OSError) -> float:
    if isinstance(rate, OSError):
        raise rate
    return rate


def disk(nbytes: int) -> tuple[float, float, float | OSError]:
    """GB/s written and synced, read after the file was dropped from the page cache, and read past that cache by several
    threads (what stands against that where it cannot be), in the temporary folder.
    """
    data = os.urandom(nbytes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ceiling")
        start = time.perf_counter()
        with path.open("wb", buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())
        written = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            begin, room = time.perf_counter(), bytearray(min(nbytes, 8 * MEGABYTE))
            while file.readinto(room):
                pass
            plain = nbytes / (time.perf_counter() - begin) / 1e9
        try:
            direct: float | OSError = cold.direct_read_rate(path) / 1e9
        except OSError as fault:
            direct = fault
        return nbytes / (written - start) / 1e9, plain, direct


def median_seconds(act: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Median seconds of one call, timed one by one after two untimed ones."""
    taken: list[float] = []
    for _ in range(2):
        act()
    end = time.perf_counter() + seconds
    while len(taken) < LEAST_TRIES or time.perf_counter() < end:
        taken.append(seconds_of(act, device))
    return sorted(taken)[len(taken) // 2]


def seconds_of(act: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call: by the device's own events on a GPU, by the clock elsewhere."""
    if device.type != "cuda":
        start = time.perf_counter()
        act()
        return time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    act()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3


def table(ceilings: Ceilings) -> str:
    lines = []
    for name, row in ceilings.items():
        value = f"{row['value']:,.1f} {row['unit']}" if row["value"] is not None else f"not measured: {row['reason']}"
        lines.append(f"  {name:<26}{value}")
    return "\n".join(lines)


def _note(found: Ceilings, name: str, unit: str, act: Callable[[], float]) -> None:
    try:
        found[name] = {"value": act(), "unit": unit}
    except (OSError, RuntimeError, AttributeError) as error:
        found[name] = {"value": None, "unit": unit, "reason": str(error).splitlines()[0]}


def _random(device: torch.device, nbytes: int) -> Tensor:
    """Bytes of random bfloat16 numbers."""
    return torch.randn(nbytes // 2, device=device, dtype=torch.bfloat16).view(torch.uint8)


def _edge(device: torch.device, smoke: bool) -> int:
    return 64 if smoke else (8192 if device.type == "cuda" else 1024)
