"""How much memory a device has, as far as this process may use it."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where the kernel tells what a container may use, in both of its versions."""


def device_bytes(device: torch.device) -> int:
    """All memory of a GPU; for the CPU the machine's, or less where the process is held to less.

    >>> device_bytes(torch.device("cpu")) > 0
    True
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    machine = int(psutil.virtual_memory().total)
    return min([machine, *(limit for path in LIMITS if (limit := _limit(Path(path))) is not None)])


def _limit(path: Path) -> int | None:
    try:
        told = path.read_text().strip()
    except OSError:
        return None
    return int(told) if told.isdigit() and int(told) > 0 else None
