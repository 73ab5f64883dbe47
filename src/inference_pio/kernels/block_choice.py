"""Which blocks of keys each block of queries keeps: those that hold a share of an estimate, and some that are fixed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inference_pio.kernels.block_estimate import last_positions, visible_blocks

DENSE = 2.0
"""A share that no choice reaches: every visible block is kept."""


@dataclass(frozen=True)
class Ranked:
    """Blocks in the order in which they are kept: `order` [..., key blocks], the estimated share that lies `before`
    each (ascending; 2 or more for what is never kept), and how many are `fixed` at the front [...]."""

    order: torch.Tensor
    before: torch.Tensor
    fixed: torch.Tensor
    visible: torch.Tensor

    @classmethod
    def of(cls, estimate: torch.Tensor, fixed: torch.Tensor, visible: torch.Tensor) -> Ranked:
        """Rank by an `estimate` [B, H, query blocks, key blocks]; `fixed` and `visible` are boolean, and broadcast."""
        rank = torch.where(fixed, estimate + 1.0, estimate).masked_fill(~visible, -1.0)
        order = rank.sort(-1, descending=True).indices
        sorted_shares = estimate.gather(-1, order)
        before = sorted_shares.cumsum(-1) - sorted_shares
        hidden = ~visible.expand_as(estimate).gather(-1, order)
        before = before.clamp(max=1.0).masked_fill(hidden, 2 * DENSE)
        return cls(order, before, (fixed & visible).expand_as(estimate).sum(-1), visible)

    def count(self, shares: torch.Tensor) -> torch.Tensor:
        """How many blocks are kept for `shares` [..., T] of each row: int64 [..., T]."""
        kept = torch.searchsorted(self.before, shares.expand(*self.before.shape[:-1], -1).contiguous())
        return torch.maximum(kept, self.fixed[..., None])

    def kept(self, shares: torch.Tensor) -> torch.Tensor:
        """The blocks kept for one share [...] of each row: boolean, shaped like `order`."""
        count = self.count(shares[..., None])
        listed = torch.arange(self.order.shape[-1], device=self.order.device) < count
        return torch.zeros_like(listed).scatter(-1, self.order, listed) & self.visible

    def coverage(self, mass: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """The true `mass` [..., key blocks] that is kept for each of `shares` [..., T]: [..., T]."""
        held = torch.nn.functional.pad(mass.gather(-1, self.order).cumsum(-1), (1, 0))
        return held.gather(-1, self.count(shares))

    def at_most(self, blocks: int) -> Ranked:
        """The same, with no more than so many blocks ever kept, the fixed ones among them."""
        beyond = torch.arange(self.before.shape[-1], device=self.before.device) >= blocks
        before = self.before.masked_fill(beyond, 2 * DENSE)
        return Ranked(self.order, before, self.fixed.clamp(max=blocks), self.visible)

    def rows(self, index: torch.Tensor) -> Ranked:
        """The same for some of the query blocks."""
        visible = self.visible.expand(*self.before.shape).index_select(2, index)
        return Ranked(*(one.index_select(2, index) for one in (self.order, self.before, self.fixed)), visible)


def fixed_blocks(
    queries: int, keys: int, query_block: int, key_block: int, *, sinks: int = 1, local: int = 2,
    ending: int = 0, starts: torch.Tensor | None = None, device: torch.device | None = None,
) -> torch.Tensor:  # fmt: skip
    """Blocks kept whatever the estimate: the first `sinks` and, up to the last key of the queries, `local` more than
    the queries themselves span, and all where one of the last `ending` queries is; boolean
    [B or 1, 1, query blocks, key blocks]."""
    last = last_positions(queries, keys, query_block, device) // key_block
    blocks = torch.arange(-(-keys // key_block), device=device)
    near = (blocks <= last[:, None]) & (blocks > last[:, None] - local - (query_block // key_block - 1))
    first = blocks.new_zeros(1) if starts is None else starts.long() // key_block
    sink = (blocks >= first[:, None]) & (blocks < first[:, None] + sinks)
    ends = torch.arange(query_block, queries + query_block, query_block, device=device) > queries - ending
    return (near | sink[:, None] | (ends[:, None] & bool(ending)))[:, None]


def seen_blocks(
    queries: int, keys: int, query_block: int, key_block: int, *, starts: torch.Tensor | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:  # fmt: skip
    """Blocks that hold a visible key: boolean [B or 1, 1, query blocks, key blocks]."""
    seen = visible_blocks(queries, keys, query_block, key_block, device)[None]
    if starts is not None:
        ends = torch.arange(key_block, keys + key_block, key_block, device=device)
        seen = seen & (ends > starts[:, None])[:, None]
    return seen[:, None]
