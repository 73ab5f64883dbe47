"""The name of what an attention module runs: a dense function's, or a pattern's over it."""

from __future__ import annotations

OVER = "_over_"


def dense_part(name: str) -> str:
    """The dense function in the name of what a module runs.

    >>> dense_part("window_over_sdpa"), dense_part("sdpa")
    ('sdpa', 'sdpa')
    """
    return name.rpartition(OVER)[2]


def pattern_part(name: str) -> str | None:
    """The pattern over it, or None.

    >>> pattern_part("window_over_sdpa"), pattern_part("sdpa")
    ('window', None)
    """
    return name.rpartition(OVER)[0] or None
