"""Which of a row of layers take part in something, as evenly as can be."""

from __future__ import annotations


def spread(count: int, total: int) -> tuple[int, ...]:
    """`count` numbers below `total`, as even as can be, so that what lies between gives time to bring them.

    >>> spread(3, 7), spread(0, 4)
    ((2, 4, 6), ())
    """
    return tuple(place for place in range(total) if (place + 1) * count // total > place * count // total)
