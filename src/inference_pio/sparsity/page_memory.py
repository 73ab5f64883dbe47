"""Summaries of the pages of a cache, followed from token to token; whatever else happened to the cache is noticed."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference_pio.compat import times_written
from inference_pio.kernels.page_summary import PageSummary, update_page_summary
from inference_pio.kernels.plain_mask import Extent
from inference_pio.kernels.triton.launch import PAGE


@dataclass
class _Followed:
    keys: weakref.ref[Tensor]
    written: int
    length: int
    starts: tuple[int, ...]
    summary: PageSummary


class PageMemory:
    """For each layer of a cache of the library: what its keys were, and their summary."""

    def __init__(self) -> None:
        self._followed: weakref.WeakKeyDictionary[Any, _Followed] = weakref.WeakKeyDictionary()

    def is_last(self, layer: Any, keys: Tensor | None) -> bool:
        """Whether these keys of a cache's layer are those that were summarized last, and nobody has written them since.
        Asked before others are written: a tensor that is gone is told from no other."""
        held = self._followed.get(layer)
        return held is not None and keys is not None and held.keys() is keys and held.written == times_written(keys)

    def forget(self, layer: Any) -> None:
        """Many tokens come to a layer at once, of another text perhaps: what it holds is read anew at the next one."""
        self._followed.pop(layer, None)

    def follow(self, layer: Any, was_last: bool, key: Tensor, extent: Extent, new: int) -> PageSummary:
        """The summary of the keys `[B, key heads, L, D]` of a cache's layer up to the extent's end, after `new` tokens
        were written behind others, of which `is_last` told whether they were summarized last. If not, all is read anew.
        """
        held = self._followed.get(layer)
        tokens = key.transpose(1, 2)
        starts = torch.tensor(extent.starts, device=key.device) if any(extent.starts) else None
        same = held is not None and was_last and held.starts == extent.starts
        if held is None or not same or held.length != extent.end - new:
            held = self._followed[layer] = _Followed(weakref.ref(key), 0, 0, extent.starts, PageSummary.zeros(tokens))
        held.summary = _room_for(held.summary, tokens)
        update_page_summary(held.summary, tokens, held.length, extent.end, starts)
        held.keys, held.written, held.length = weakref.ref(key), times_written(key), extent.end
        return held.summary


def _room_for(summary: PageSummary, tokens: Tensor) -> PageSummary:
    """The same summary with a place for every page, and half as many again, so that it seldom grows."""
    pages = -(-tokens.shape[1] // PAGE)
    if pages <= summary.mean.shape[2]:
        return summary
    wide = PageSummary.zeros(tokens.new_empty(tokens.shape[0], 1, *tokens.shape[2:]).expand(
        -1, (pages + pages // 2) * PAGE, -1, -1
    ))  # fmt: skip
    for new, old in zip(
        (wide.minimum, wide.maximum, wide.mean), (summary.minimum, summary.maximum, summary.mean), strict=True
    ):
        new[:, :, : old.shape[2]] = old
    return wide
