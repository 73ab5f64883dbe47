"""Sizes in bytes as people write them: a whole number, or a number with a unit."""

from __future__ import annotations

import re

UNITS = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


def bytes_of(size: int | str) -> int:
    """How many bytes a size is. Raises ValueError for what is none, and for less than one byte.

    >>> bytes_of("4GB"), bytes_of("1.5 MiB"), bytes_of(4096)
    (4000000000, 1572864, 4096)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", size) if isinstance(size, str) else None
    unit = (found[2].upper() or "B") if found else "B"
    if isinstance(size, bool) or not (isinstance(size, int) or (found and unit in UNITS)):
        raise ValueError(f"{size!r} is no size: give bytes as a whole number, or a number with B, KB, MB, GB, KiB, ...")
    count = round(float(found[1]) * UNITS[unit]) if found else int(size)
    if count < 1:
        raise ValueError(f"{size!r} is less than one byte")
    return count


def in_words(count: float) -> str:
    """So many bytes with the unit that suits them.

    >>> in_words(4_000_000_000), in_words(1536), in_words(12)
    ('4 GB', '1.54 KB', '12 B')
    """
    unit = next((name for name in ("TB", "GB", "MB", "KB") if count >= UNITS[name]), "B")
    return f"{count / UNITS[unit]:.3g} {unit}"
