"""Attention over lists of key blocks: the lists, and the plain truth for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inference_pio.kernels.attention import naive_attention


@dataclass(frozen=True)
class BlockList:
    """Which blocks of keys each block of queries reads: `counts` int32 [B, H, query blocks], and that many
    ascending block numbers at the front of each row of `indices` int32 [B, H, query blocks, at most].

    Every listed block must hold a key that its queries may see; what lies behind the count is not read.
    """

    counts: torch.Tensor
    indices: torch.Tensor
    query_block: int
    key_block: int

    @classmethod
    def from_kept(cls, kept: torch.Tensor, query_block: int, key_block: int) -> BlockList:
        """The lists of a boolean tensor [B, H, query blocks, key blocks].

        >>> lists = BlockList.from_kept(torch.tensor([[[[True, False], [True, True]]]]), 64, 64)
        >>> lists.counts.tolist(), lists.indices.tolist()
        ([[[1, 2]]], [[[[0, 1], [0, 1]]]])
        """
        order = kept.logical_not().to(torch.uint8).sort(dim=-1, stable=True).indices  # kept ones first, ascending
        return cls(kept.sum(-1).int(), order.int().contiguous(), query_block, key_block)

    def kept(self) -> torch.Tensor:
        """The boolean tensor [B, H, query blocks, at most] that the lists stand for."""
        listed = torch.arange(self.indices.shape[-1], device=self.counts.device) < self.counts[..., None]
        return torch.zeros_like(listed).scatter(-1, self.indices.long(), listed)

    def mask(self, queries: int, keys: int) -> torch.Tensor:
        """Which keys lie in a listed block: boolean [B, H, queries, keys]."""
        wide = self.kept().repeat_interleave(self.query_block, 2).repeat_interleave(self.key_block, 3)
        return wide[:, :, :queries, :keys]


def naive_block_sparse_attention(query, key, value, lists, *, causal=True, scale=None):
    """Softmax over the keys of the listed blocks alone, float32; the last query stands at the last key if `causal`.

    A query that sees no key gives zeros.
    """
    seen = lists.mask(query.shape[2], key.shape[2])
    if causal:
        seen = seen & torch.ones_like(seen).tril(key.shape[2] - query.shape[2])
    return naive_attention(query, key, value, seen, scale=scale).nan_to_num(0.0)
