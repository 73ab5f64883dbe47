"""Memory that is a mapped file: when weights in it are put away, the system may take its pages at once."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

MAPS = Path("/proc/self/maps")
PAGE_OUT = 21
"""MADV_PAGEOUT, Linux 5.4: pages leave memory and come back from the file when they are read; nothing is lost."""


def page_out_mapped(ranges: Iterable[tuple[int, int]]) -> int:
    """Let pages of files in these (address, length) ranges leave memory; returns the bytes that may have.

    Weights that were loaded by mapping their file keep all of it mapped as long as one tensor lies in it. Where the
    system knows no such advice, the pages stay until memory is needed, as all pages of files do.
    """
    advise = getattr(ctypes.CDLL(None), "madvise", None) if os.name == "posix" else None
    mapped, page, done = _mapped_files(), os.sysconf("SC_PAGE_SIZE") if os.name == "posix" else 4096, 0
    for address, nbytes in ranges:
        first, last = -(-address // page) * page, (address + nbytes) // page * page
        if advise is None or last <= first or not any(low <= first and last <= high for low, high in mapped):
            continue
        if advise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), PAGE_OUT) == 0:
            done += last - first
    return done


def _mapped_files() -> list[tuple[int, int]]:
    """The address ranges at which files are mapped to be read."""
    try:
        lines = MAPS.read_text().splitlines()
    except OSError:  # no such interface here
        return []
    found = []
    for line in lines:
        ends, rights, _, _, inode, *_ = line.split()
        if inode != "0" and rights.startswith("r"):
            low, high = ends.split("-")
            found.append((int(low, 16), int(high, 16)))
    return found
