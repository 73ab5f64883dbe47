"""How much memory this process may take: a control group's limit where there is one, never the machine's size alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def memory_limit_bytes(groups: Path = CGROUPS, own: Path = OWN_GROUPS) -> int:
    """The least of the machine's memory and the limits of the control groups that this process is in."""
    return min([psutil.virtual_memory().total, *_limits(groups, own)])


def _limits(groups: Path, own: Path) -> Iterator[int]:
    """The limits of every group from this process's own up to the root, in both versions of the interface."""
    for controller, path in _memberships(own):
        base, name = (groups, "memory.max") if not controller else (groups / "memory", "memory.limit_in_bytes")
        for place in [base / path, *(base / above for above in Path(path).parents)]:
            limit = _number_in(place / name)
            if limit is not None:
                yield limit


def _memberships(own: Path) -> list[tuple[str, str]]:
    """(controller, group), the controller empty in the unified version; the root where nothing can be read.

    Inside a container the path may be one of the host's, which is not there: the root is asked always.
    """
    found = [("", ""), ("memory", "")]
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            found.append(("memory" if controllers else "", path.strip("/")))
    return found


def _number_in(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit
