"""Which pages of a cache are read: a list for each key head, on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PageList:
    """The pages that each key head reads: `counts` int32 [B, key heads], that many page numbers at the front
    of each row of `indices` int32 [B, key heads, at most]. All of it may change between replays of a graph."""

    counts: torch.Tensor
    indices: torch.Tensor

    @classmethod
    def empty(cls, batch: int, key_heads: int, most: int, device: torch.device) -> PageList:
        """Room for lists of up to so many pages."""
        counts = torch.zeros(batch, key_heads, dtype=torch.int32, device=device)
        return cls(counts, torch.zeros(batch, key_heads, most, dtype=torch.int32, device=device))

    def kept(self, pages: int) -> torch.Tensor:
        """The same as boolean [B, key heads, pages].

        >>> PageList(torch.tensor([[2]]), torch.tensor([[[0, 3, 7]]])).kept(5).int().tolist()
        [[[1, 0, 0, 1, 0]]]
        """
        listed = torch.arange(self.indices.shape[-1], device=self.counts.device) < self.counts[..., None]
        places = torch.where(listed, self.indices.long(), pages)  # those that are not listed fall off the end
        kept = torch.zeros(*self.counts.shape, pages + 1, dtype=torch.bool, device=self.counts.device)
        return kept.scatter_(-1, places, True)[..., :pages]
