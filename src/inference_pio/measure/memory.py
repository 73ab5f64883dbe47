"""How many bytes a model takes: its weights, what stays resident with them, and the most that some work needed."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from inference_pio.measure.target import synchronize

SAMPLING_INTERVAL_S = 0.005
# A reset mark starts at the present size; counters that lag per CPU leave a little more.
RESET_SLACK_BYTES = 16 * 2**20


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers: a storage that several share counts once, one on the meta device not at all.

    >>> weight_bytes(nn.Linear(4, 2, bias=False))
    32
    """
    sizes: dict[tuple[torch.device, int], int] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        for part in _plain_tensors(tensor):
            if part.device.type != "meta":
                storage = part.untyped_storage()
                sizes[storage.device, storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def resident_bytes(model: nn.Module, held_bytes: int = 0) -> int:
    """What the model costs while it is loaded: its weights, and what is held so that they can be given back."""
    return weight_bytes(model) + held_bytes


@dataclass
class Peak:
    """The most bytes in use during a block of work, those at its start, and how they were read.

    It counts everything in the process (on CUDA: all it allocated on the device), so measure one model at a time.
    """

    method: str
    start_bytes: int = 0
    peak_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        rise = self.peak_bytes - self.start_bytes
        return {"method": self.method, "start_bytes": self.start_bytes, "rise_bytes": rise}


@contextmanager
def peak_bytes(device: torch.device) -> Iterator[Peak]:
    """Read the peak of a block of work; the answer is filled in when the block ends.

    On the CPU the process's own high-water mark (VmHWM) is reset first, which Linux permits most processes; where it
    does not, a thread samples the resident size.

    >>> with peak_bytes(torch.device("cpu")) as peak:
    ...     block = torch.ones(16 * 2**20, dtype=torch.uint8)
    >>> peak.peak_bytes >= peak.start_bytes
    True
    """
    gc.collect()
    if device.type == "cuda":
        watch = _watch_cuda(device)
    elif _reset_high_water_mark():
        watch = _watch_high_water_mark()
    else:
        watch = _watch_samples()
    with watch as peak:
        yield peak


@contextmanager
def _watch_cuda(device: torch.device) -> Iterator[Peak]:
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    peak = Peak("torch.cuda.max_memory_allocated", torch.cuda.memory_allocated(device))
    try:
        yield peak
    finally:
        synchronize(device)
        peak.peak_bytes = torch.cuda.max_memory_allocated(device)


@contextmanager
def _watch_high_water_mark() -> Iterator[Peak]:
    peak = Peak("VmHWM of the process, reset before", _status_bytes("VmRSS"))
    try:
        yield peak
    finally:
        peak.peak_bytes = _status_bytes("VmHWM")


@contextmanager
def _watch_samples() -> Iterator[Peak]:
    process, done = psutil.Process(), threading.Event()
    start = process.memory_info().rss
    peak = Peak(f"resident size of the process, sampled every {SAMPLING_INTERVAL_S * 1000:g} ms", start, start)

    def sample() -> None:
        while not done.wait(SAMPLING_INTERVAL_S):
            peak.peak_bytes = max(peak.peak_bytes, process.memory_info().rss)

    sampler = threading.Thread(target=sample, name="inference-pio-peak", daemon=True)
    sampler.start()
    try:
        yield peak
    finally:
        done.set()
        sampler.join()
        peak.peak_bytes = max(peak.peak_bytes, process.memory_info().rss)


def _reset_high_water_mark() -> bool:
    """Whether the kernel took the reset; one that answers and does nothing is found out by the mark that stays."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status_bytes("VmHWM") <= _status_bytes("VmRSS") + RESET_SLACK_BYTES
    except (OSError, ValueError):
        return False


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"this kernel tells no {field}")


def _plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """A wrapper subclass (a quantized tensor, say) has no bytes of its own: its inner tensors do."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain_tensors(getattr(tensor, name))
