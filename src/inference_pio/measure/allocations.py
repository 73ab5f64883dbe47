"""The most bytes that torch itself allocated at once during a block of work, counted allocation by allocation."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from inference_pio.measure.memory import Peak, peak_bytes

MEMORY = "[memory]"


@contextmanager
def peak_allocated(device: torch.device) -> Iterator[Peak]:
    """Like `peak_bytes`, but of torch's allocations alone: what the process holds besides is not in it.

    On a GPU the allocator counts them; on the CPU a profiler writes each down, which takes time: not for timing.

    >>> with peak_allocated(torch.device("cpu")) as peak:
    ...     total = (torch.ones(2**20) + 1).sum()
    >>> peak.peak_bytes - peak.start_bytes >= 2 * 2**22
    True
    """
    if device.type != "cpu":
        with peak_bytes(device) as peak:
            yield peak
        return
    peak = Peak("torch's CPU allocations, by its profiler")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        yield peak
    peak.peak_bytes = _most(watched)


def _most(watched: Any) -> int:
    """The largest sum of what was allocated and not yet freed; what was there before counts as nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        watched.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    found = [event for event in events if event.get("name") == MEMORY]
    total = most = 0
    for event in sorted(found, key=lambda one: one["ts"]):
        total += event["args"]["Bytes"]
        most = max(most, total)
    return most
