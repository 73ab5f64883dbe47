"""Where single queries really look: the exact share of their attention on each block of keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def naive_row_mass(query, positions, key, *, block, scale=None, starts=None):
    """`query` [B, H, R, D], standing at `positions` int64 [R] of `key` [B, key heads, L, D], sees the keys up to its
    own (from `starts[b]` on): the share on each block, float32 [B, H, R, blocks]. Rows that see nothing give zeros."""
    groups = query.shape[1] // key.shape[1]
    scores = query.float() @ key.float().repeat_interleave(groups, 1).transpose(-1, -2)
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    tokens = torch.arange(key.shape[2], device=key.device)
    seen = (tokens <= positions[:, None])[None, None]
    if starts is not None:
        seen = seen & (tokens >= starts[:, None])[:, None, None]
    shares = torch.softmax(scores.masked_fill(~seen, float("-inf")), -1).nan_to_num(0.0)
    return F.pad(shares, (0, -shares.shape[-1] % block)).unflatten(-1, (-1, block)).sum(-1)


def row_mass(
    query: torch.Tensor, positions: torch.Tensor, key: torch.Tensor, *, block: int, scale: float | None = None,
    starts: torch.Tensor | None = None, rows: int = 64,
) -> torch.Tensor:  # fmt: skip
    """`naive_row_mass`, in the tensors' own precision and `rows` queries at a time: no large score matrix is held."""
    keys = key[:, :, None].transpose(-1, -2)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    tokens = torch.arange(key.shape[2], device=key.device)
    parts = []
    for first in range(0, query.shape[2], rows):
        part = query[:, :, first : first + rows].unflatten(1, (key.shape[1], -1))
        seen = tokens <= positions[first : first + rows, None]
        if starts is not None:
            seen = seen & (tokens >= starts[:, None])[:, None, None, None]
        scores = ((part @ keys).float() * scale).masked_fill_(~seen, float("-inf")).flatten(1, 2)
        highest = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
        weights = F.pad(scores.sub_(highest).exp_(), (0, -scores.shape[-1] % block)).unflatten(-1, (-1, block)).sum(-1)
        parts.append(weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny))
    return torch.cat(parts, 2)


NUMBERS_AT_A_TIME = 2**24
"""Scores that `last_token_mass` holds: 64 MB."""


def last_token_mass(
    queries: torch.Tensor, keys: Sequence[torch.Tensor], *, block: int, scale: float | None = None,
    starts: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Of many layers at once, the mean over the query heads of each key head of `naive_row_mass` for the last token:
    `queries` [layers, B, H, D], of each layer `keys` [B, key heads, L, D], float32 [layers, B, key heads, blocks].

    >>> last_token_mass(torch.ones(3, 1, 4, 8), [torch.ones(1, 2, 100, 8)] * 3, block=64).shape
    torch.Size([3, 1, 2, 2])
    """
    batch, key_heads, length, width = keys[0].shape
    scale, hidden = width**-0.5 if scale is None else scale, None
    if starts is not None:
        hidden = (torch.arange(length, device=queries.device) < starts[:, None])[:, None, None]
    asked = queries.unflatten(2, (key_heads, -1))
    at_once = max(1, NUMBERS_AT_A_TIME // (batch * queries.shape[2] * length))
    parts = []
    for first in range(0, len(keys), at_once):
        some = range(first, min(first + at_once, len(keys)))
        scores = torch.stack([asked[layer] @ keys[layer].transpose(-1, -2) for layer in some]).float().mul_(scale)
        if hidden is not None:
            scores.masked_fill_(hidden, float("-inf"))
        highest = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
        weights = F.pad(scores.sub_(highest).exp_(), (0, -length % block)).unflatten(-1, (-1, block)).sum(-1)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        parts.append(weights.mean(3))
    return torch.cat(parts)
