"""One decode token a row, from what a product made of it to what it attends to: the plain truth."""

from __future__ import annotations

import torch

from inference_pio.kernels.decode_attention import naive_decode_attention
from inference_pio.kernels.rotary_store import naive_rotate_and_store


def naive_rotated_decode(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    lengths: torch.Tensor,
    starts: torch.Tensor | None = None,
    *,
    heads: int,
    key_heads: int,
    query_norm: torch.Tensor | None = None,
    key_norm: torch.Tensor | None = None,
    eps: float = 0.0,
    interleaved: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """Its key and value into the caches, then attention over all that is held, in float32 [M, Hq, D]; tensors are as
    `rotary_store.rotate_and_store` and `decode_attention.naive_decode_attention` take them."""
    query = naive_rotate_and_store(
        qkv, keys, values, cos, sin, positions, lengths, heads=heads, key_heads=key_heads, query_norm=query_norm,
        key_norm=key_norm, eps=eps, interleaved=interleaved,
    )  # fmt: skip
    return naive_decode_attention(query, keys, values, lengths, starts, scale=scale)
