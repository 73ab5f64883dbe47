"""Sizes as people write them: "4GB", "512 MiB", a number of bytes, or a share of something ("40%")."""

from __future__ import annotations

import math
import re

from inference_pio.errors import InvalidSetting

UNITS = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[A-Za-z]+|%)\s*")


def bytes_in(size: int | str, of_bytes: int | None = None) -> int:
    """How many bytes a size means; a share is one of `of_bytes`. Raises InvalidSetting for what is no size, and for a
    share where there is nothing to have one of.

    >>> bytes_in("1.5 MB"), bytes_in("4GiB"), bytes_in("40%", 1000), bytes_in(7)
    (1500000, 4294967296, 400, 7)
    """
    if isinstance(size, int):
        if isinstance(size, bool) or size < 1:
            raise InvalidSetting(f"a size must be at least one byte, and {size!r} is none.")
        return size
    found = _SIZE.fullmatch(size)
    unit = found["unit"].upper() if found else ""
    if found is None or not (unit in UNITS or (unit == "%" and of_bytes is not None)):
        raise InvalidSetting(
            f"{size!r} is no size: give bytes as a whole number, or text such as '4GB' or '512 MiB'"
            f"{'.' if of_bytes is None else ', or a share such as 40%.'}"
        )
    nbytes = math.floor(float(found["number"]) * ((of_bytes or 0) / 100 if unit == "%" else UNITS[unit]))
    if nbytes < 1 and unit != "%":
        raise InvalidSetting(f"a size must be at least one byte, and {size!r} is none.")
    return nbytes


def in_words(nbytes: int) -> str:
    """A number of bytes as text.

    >>> in_words(1_234_567_890), in_words(54_000_000), in_words(900)
    ('1.23 GB', '54.0 MB', '900 bytes')
    """
    for unit, name, digits in ((10**9, "GB", 2), (10**6, "MB", 1), (10**3, "kB", 1)):
        if nbytes >= unit:
            return f"{nbytes / unit:.{digits}f} {name}"
    return f"{nbytes} bytes"
