"""Masks that hide no more than what comes later and padding on the left: then a few numbers say all of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

ROWS = 1024
"""Rows of a mask that are compared at a time."""


@dataclass(frozen=True)
class Extent:
    """The last query stands at key `end - 1`, and row b of the batch begins at key `starts[b]`."""

    starts: tuple[int, ...]
    end: int

    def rows_by_start(self) -> list[tuple[int, slice]]:
        """Neighbouring rows of the batch that begin at one key.

        >>> Extent((0, 0, 3), 8).rows_by_start()
        [(0, slice(0, 2, None)), (3, slice(2, 3, None))]
        """
        borders = [row for row in range(1, len(self.starts)) if self.starts[row] != self.starts[row - 1]]
        edges = zip([0, *borders], [*borders, len(self.starts)], strict=True)
        return [(self.starts[first], slice(first, last)) for first, last in edges]


def extent_without_mask(batch: int, queries: int, keys: int) -> Extent:
    """What no mask means to the library: one new token sees every key, several stand at the first keys.

    >>> extent_without_mask(1, 1, 9).end, extent_without_mask(1, 4, 9).end
    (9, 4)
    """
    return Extent((0,) * batch, keys if queries == 1 else queries)


def extent_of(mask: torch.Tensor, batch: int) -> Extent | None:
    """What a mask [B or 1, 1, queries, keys], boolean or additive, means, if it is of that plain kind; else None.

    A padding token's own row may hold anything. The values are read, which waits for the device.
    """
    if mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[0] not in (1, batch):
        return None
    seen = _as_boolean(mask[:, 0])
    last = seen[:, -1] if seen is not None else None
    if last is None or not last.any(-1).all():
        return None
    starts, keys = last.int().argmax(-1), last.shape[-1]
    end = keys - int(last.flip(-1).int().argmax(-1).min())
    first = end - seen.shape[1]
    if first < 0 or not _is_plain(seen, starts, first):
        return None
    found = tuple(starts.tolist())
    return Extent(found * batch if len(found) == 1 else found, end)


def _as_boolean(mask: torch.Tensor) -> torch.Tensor | None:
    if mask.dtype == torch.bool:
        return mask
    if not mask.is_floating_point():
        return None
    hidden = mask <= torch.finfo(mask.dtype).min / 2
    return ~hidden if bool((hidden | (mask == 0)).all()) else None


def _is_plain(seen: torch.Tensor, starts: torch.Tensor, first: int) -> bool:
    column = torch.arange(seen.shape[2], device=seen.device)
    for row in range(0, seen.shape[1], ROWS):
        part = seen[:, row : row + ROWS]
        position = torch.arange(first + row, first + row + part.shape[1], device=seen.device)[:, None]
        expected = (column <= position) & (column >= starts[:, None, None])
        if not bool(((part == expected) | (position < starts[:, None, None])).all()):
            return False
    return True
