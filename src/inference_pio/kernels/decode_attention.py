"""Attention of one new token a row over a cache of tokens: the layouts, and the plain truth for them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.page_list import PageList
from inference_pio.kernels.triton.attention_support import supports_decode
from inference_pio.kernels.triton.launch import PAGE

TRITON, TORCH = "triton", "torch"


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


def choose_decode_backend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: torch.Tensor,
    starts: torch.Tensor | None = None,
) -> str:
    """ "triton" where its kernel serves, which reads held tokens alone; else "torch", which reads the whole room."""
    served = query.is_cuda and bool(supports_decode(query, key, value, lengths, starts))
    return TRITON if served else TORCH


def decode_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: torch.Tensor,
    starts: torch.Tensor | None = None,
    *,
    pages: PageList | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """The same in the dtype of the query, without a look at the host; what lies behind `lengths` must be finite.

    >>> query, cache = torch.ones(1, 2, 8), torch.ones(1, 64, 1, 8)
    >>> decode_attention(query, cache, cache, torch.tensor([3], dtype=torch.int32)).shape
    torch.Size([1, 2, 8])
    """
    if choose_decode_backend(query, key, value, lengths, starts) == TRITON:
        from inference_pio.kernels.triton.decode import decode_attention as split

        return split(query, key, value, lengths, starts, pages=pages, scale=scale)
    tokens = torch.arange(key.shape[1], device=key.device)
    seen = tokens < lengths[:, None]
    if starts is not None:
        seen = seen & (tokens >= starts[:, None])
    seen = seen[:, None, None]
    if pages is not None:
        kept = pages.kept(-(-key.shape[1] // PAGE)).repeat_interleave(PAGE, -1)[..., : key.shape[1]]
        seen = seen & kept.repeat_interleave(query.shape[1] // key.shape[2], 1)[:, :, None]
    out = F.scaled_dot_product_attention(
        query[:, :, None], key.transpose(1, 2), value.transpose(1, 2), attn_mask=seen, scale=scale,
        enable_gqa=query.shape[1] != key.shape[2],
    )  # fmt: skip
    return out[:, :, 0]


def gather_pages(pool: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The cache [B, tokens, key heads, D] that a `table` int32 [B, pages] into a `pool` [P, page, heads, D] means.

    >>> gather_pages(torch.arange(6.0).view(3, 2, 1, 1), torch.tensor([[2, 0]])).flatten().tolist()
    [4.0, 5.0, 0.0, 1.0]
    """
    return pool[table.long()].flatten(1, 2)
