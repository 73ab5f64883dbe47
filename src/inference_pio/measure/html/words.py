"""Numbers as they read on the page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

MINUS = "−"


def number(value: Any) -> float | None:
    """A number of a report's JSON, where infinities stand as words; None for what is no number.

    >>> number(2), number("inf"), number(None), number("many")
    (2.0, inf, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):  # a whole number of more than 308 digits
        return None


def figure(value: float, digits: int = 3) -> str:
    """So many digits that count; powers of ten stand only with what is very small.

    >>> figure(33.248), figure(819.6), figure(12345.6), figure(0.0054)
    ('33.2', '820', '12,346', '0.0054')
    """
    if not math.isfinite(value):
        return "∞" if value > 0 else "not a number"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 1
    text = f"{value:,.{max(0, digits - whole)}f}" if abs(value) >= 1 else f"{value:.{digits}g}"
    return text.replace("-", MINUS)


def size(nbytes: float) -> str:
    """Bytes in decimal units.

    >>> size(269030272), size(61_100_000_000), size(-105857280), size(900)
    ('269.0 MB', '61.10 GB', '−105.9 MB', '900 B')
    """
    for unit, name, digits in ((1e12, "TB", 2), (1e9, "GB", 2), (1e6, "MB", 1), (1e3, "kB", 1)):
        if abs(nbytes) >= unit:
            return f"{nbytes / unit:.{digits}f} {name}".replace("-", MINUS)
    return f"{nbytes:.0f} B".replace("-", MINUS)


def times(ratio: float, digits: int = 2) -> str:
    """A ratio.

    >>> times(1.5358), times(0.99858, 4)
    ('1.54×', '0.9986×')
    """
    return f"{ratio:.{digits}f}×" if math.isfinite(ratio) else "∞×"


def settings(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Parameters or decisions as names and texts; what is nested reads as JSON.

    >>> settings({"format": "int8", "use_triton": False, "bits": [4, 8]})
    [('format', 'int8'), ('use_triton', 'false'), ('bits', '[4, 8]')]
    """
    return [
        (str(name), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
        for name, value in values.items()
    ]
