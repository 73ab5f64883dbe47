"""Attention over lists of key blocks by torch's own kernels: the listed keys are gathered, and the rest not read."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from inference_pio.kernels.block_sparse import BlockList
from inference_pio.kernels.triton.launch import PAGE


def gathered_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lists: BlockList, *, scale: float | None = None,
    starts: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """`naive_block_sparse_attention` (causal) by torch's fused kernels, one block of queries of one head at a time:
    work and memory follow what is listed.

    Row b sees keys from `starts[b]` on; a query that sees none gives zeros.
    """
    batch, heads, queries, _ = query.shape
    context, group, span = key.shape[2], heads // key.shape[1], lists.key_block
    key, value = (_in_blocks(one, span) for one in (key, value))
    out = query.new_empty(batch, queries, heads, value.shape[-1]).transpose(1, 2)
    counts, within = lists.counts.tolist(), torch.arange(span, device=query.device)
    first_seen = [0] * batch if starts is None else starts.tolist()
    for row in range(batch):
        for head in range(heads):
            for number, count in enumerate(counts[row][head]):
                rows = slice(number * lists.query_block, min((number + 1) * lists.query_block, queries))
                blocks = lists.indices[row, head, number, :count]
                places = (blocks[:, None] * span + within).flatten()
                positions = context - queries + torch.arange(rows.start, rows.stop, device=query.device)
                seen = (places <= positions[:, None]) & (places >= first_seen[row])
                keys, values = (one[row, head // group].index_select(0, blocks).flatten(0, 1) for one in (key, value))
                out[row, head, rows] = _attend(query[row, head, rows], keys, values, seen, scale)
    return out


def gathered_decode(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pages: torch.Tensor, *, scale: float | None = None,
    starts: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """One new token a row, `query` [B, H, 1, D], over the kept `pages` (boolean [B, key heads, pages]) of `key` and
    `value` [B, key heads, L, D], of which it sees all from `starts[b]` on: [B, H, 1, D]."""
    batch, heads, _, _ = query.shape
    key_heads, context = key.shape[1:3]
    span = PAGE
    out = query.new_empty(batch, heads, 1, value.shape[-1])
    group = heads // key_heads
    within = torch.arange(span, device=query.device)
    for row in range(batch):
        for head in range(key_heads):
            places = (pages[row, head].nonzero() * span + within).flatten()
            places = places[(places < context) & (places >= (0 if starts is None else starts[row]))]
            mine = slice(head * group, (head + 1) * group)
            keys, values = key[row, head].index_select(0, places), value[row, head].index_select(0, places)
            out[row, mine, 0] = F.scaled_dot_product_attention(
                query[row, mine, 0][None, None], keys[None, None], values[None, None], scale=scale
            )[0, 0]
    return out


def _in_blocks(tensor, span):
    """`[B, H, S, D]` as [B, H, blocks, span, D], zeros behind the end."""
    if tensor.shape[2] % span:
        tensor = F.pad(tensor, (0, 0, 0, -tensor.shape[2] % span))
    return tensor.unflatten(2, (-1, span))


def _attend(query, keys, values, seen, scale):
    out = F.scaled_dot_product_attention(
        query[None, None], keys[None, None], values[None, None], seen[None, None], scale=scale
    )[0, 0]
    return out.masked_fill(~seen.any(-1, keepdim=True), 0.0)
