"""Attention of one new token a row over a cache of tokens: the layouts, and the plain truth for them."""

from __future__ import annotations

import torch

from inference_pio.kernels.attention import naive_attention


def naive_decode_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: torch.Tensor,
    starts: torch.Tensor | None = None,
    *,
    pages: torch.Tensor | None = None,
    page_size: int = 64,
    scale: float | None = None,
) -> torch.Tensor:
    """`query` [B, H, D] over `key` and `value` [B, capacity, key heads, D], float32: [B, H, D].

    Row b sees tokens `starts[b]` to `lengths[b]` (one length may serve all), and of those the ones in the kept `pages`
    (boolean [B, key heads, pages]) alone. A row that sees nothing gives zeros.
    """
    batch, capacity, key_heads, _ = key.shape
    tokens = torch.arange(capacity, device=key.device)
    seen = (tokens < lengths.expand(batch)[:, None])[:, None].expand(batch, key_heads, capacity)
    if starts is not None:
        seen = seen & (tokens >= starts[:, None])[:, None]
    if pages is not None:
        seen = seen & pages.repeat_interleave(page_size, -1)[..., :capacity]
    seen = seen.repeat_interleave(query.shape[1] // key_heads, 1)[:, :, None]
    value = value.masked_fill(tokens.expand(batch, capacity)[..., None, None] >= lengths.view(-1, 1, 1, 1), 0.0)
    out = naive_attention(query[:, :, None], key.transpose(1, 2), value.transpose(1, 2), seen, scale=scale)
    return out[:, :, 0].nan_to_num(0.0)


def gather_pages(pool: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The cache [B, tokens, key heads, D] that a `table` int32 [B, pages] into a `pool` [P, page, heads, D] means.

    >>> gather_pages(torch.arange(6.0).view(3, 2, 1, 1), torch.tensor([[2, 0]])).flatten().tolist()
    [4.0, 5.0, 0.0, 1.0]
    """
    return pool[table.long()].flatten(1, 2)
