"""Least, largest and mean key of each page of a cache: the plain truth first, then what follows a write."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inference_pio.kernels.triton.launch import PAGE


@dataclass(frozen=True)
class PageSummary:
    """Of each page's keys, [B, key heads, pages, D]: `minimum` and `maximum` in their dtype, `mean` in float32.

    A page without a key is all zeros.
    """

    minimum: torch.Tensor
    maximum: torch.Tensor
    mean: torch.Tensor

    @classmethod
    def zeros(cls, keys: torch.Tensor, page_size: int = PAGE) -> PageSummary:
        """Of a cache [B, capacity, key heads, D] that holds nothing.

        >>> PageSummary.zeros(torch.empty(1, 300, 2, 8)).mean.shape
        torch.Size([1, 2, 5, 8])
        """
        batch, capacity, heads, width = keys.shape
        shape = (batch, heads, -(-capacity // page_size), width)
        return cls(keys.new_zeros(shape), keys.new_zeros(shape), keys.new_zeros(shape, dtype=torch.float32))


def naive_page_summary(
    keys: torch.Tensor, length: int, starts: torch.Tensor | None = None, *, page_size: int = PAGE
) -> PageSummary:
    """Page by page and row by row from the definition, in float32: row b holds tokens `starts[b]` to `length`."""
    summary = PageSummary.zeros(keys.float(), page_size)
    for row in range(keys.shape[0]):
        start = 0 if starts is None else int(starts[row])
        for page in range(summary.mean.shape[2]):
            held = keys[row, max(start, page * page_size) : min(length, (page + 1) * page_size)].float()
            if len(held):
                summary.minimum[row, :, page] = held.amin(0)
                summary.maximum[row, :, page] = held.amax(0)
                summary.mean[row, :, page] = held.mean(0)
    return summary


def update_page_summary(
    summary: PageSummary,
    keys: torch.Tensor,
    before: int,
    after: int,
    starts: torch.Tensor | None = None,
    *,
    page_size: int = PAGE,
) -> None:
    """Follow, in place, a cache [B, capacity, key heads, D] whose length went from `before` to `after`.

    Only the pages between are written: one new token is added to what its page's summary holds, else they are read.
    """
    if after == before + 1:
        _add_token(summary, keys, before, starts, page_size)
        return
    first, whole, rest = min(before, after) // page_size, after // page_size, after % page_size
    if first < whole:
        pages = keys[:, first * page_size : whole * page_size].unflatten(1, (whole - first, page_size))
        _read(summary, pages, first, starts, page_size)
    if rest:
        _read(summary, keys[:, None, after - rest : after], whole, starts, page_size)
    for kept in (summary.minimum, summary.maximum, summary.mean):
        kept[:, :, -(-after // page_size) : -(-before // page_size)] = 0.0  # what a crop left behind


def _read(summary, pages, first, starts, page_size):
    """Write what `pages` [B, pages, tokens, key heads, D] hold, of which the first is the cache's page `first`."""
    if starts is None:
        found = pages.amin(2), pages.amax(2), pages.mean(2, dtype=torch.float32)
    else:
        numbers, tokens = (torch.arange(count, device=pages.device) for count in pages.shape[1:3])
        places = (first + numbers)[:, None] * page_size + tokens
        hidden = (places < starts[:, None, None])[..., None, None]
        count = hidden.logical_not().sum(2)
        least = pages.masked_fill(hidden, float("inf")).amin(2)
        largest = pages.masked_fill(hidden, float("-inf")).amax(2)
        mean = pages.masked_fill(hidden, 0.0).sum(2, dtype=torch.float32) / count.clamp(min=1)
        found = tuple(each.masked_fill(count == 0, 0.0) for each in (least, largest, mean))
    for kept, each in zip((summary.minimum, summary.maximum, summary.mean), found, strict=True):
        kept[:, :, first : first + pages.shape[1]] = each.transpose(1, 2)


def _add_token(summary, keys, place, starts, page_size):
    page, first, key = place // page_size, place // page_size * page_size, keys[:, place]
    least, largest, mean = (kept[:, :, page] for kept in (summary.minimum, summary.maximum, summary.mean))
    if starts is None:
        if place == first:
            for kept in (least, largest, mean):
                kept.copy_(key)
        else:
            torch.minimum(least, key, out=least)
            torch.maximum(largest, key, out=largest)
            mean += (key - mean) / (place + 1 - first)
        return
    count = (place + 1 - starts.clamp(min=first))[:, None, None]
    alone, absent = count == 1, count <= 0
    for kept, found in (
        (least, torch.minimum(least, key)),
        (largest, torch.maximum(largest, key)),
        (mean, mean + (key - mean) / count.clamp(min=1)),
    ):
        kept.copy_(torch.where(alone, key, found).masked_fill(absent, 0.0))
