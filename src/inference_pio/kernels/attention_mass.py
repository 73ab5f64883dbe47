"""How much of the attention falls on each block of keys, summed over each block of queries: naive, then row by row."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def naive_attention_mass(query, key, mask=None, *, causal=False, scale=None, block=64):
    """Mean probability [B, H, query blocks, key blocks] of `[B, H, S, D]`; the blocks of one row of blocks sum to 1.

    A query that sees no key at all counts for nothing.
    """
    scores = _scores(query, key, scale)
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(~seen.tril(key.shape[2] - query.shape[2]), float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return _by_blocks(_probabilities(scores), block)


def attention_mass(query, key, mask=None, *, causal=False, scale=None, block=64, rows=1024):
    """`naive_attention_mass`, `rows` queries (a multiple of `block`) at a time: no whole score matrix is held."""
    rows = max(block, rows - rows % block)
    parts = []
    for start in range(0, query.shape[2], rows):
        part = query[:, :, start : start + rows]
        scores = _scores(part, key, scale)
        if causal:
            last = key.shape[2] - query.shape[2] + torch.arange(start, start + part.shape[2], device=key.device)
            scores = scores.masked_fill(torch.arange(key.shape[2], device=key.device) > last[:, None], float("-inf"))
        if mask is not None:
            seen = mask[..., start : start + rows, :] if mask.shape[-2] > 1 else mask
            scores = scores.masked_fill(~seen, float("-inf")) if mask.dtype == torch.bool else scores + seen
        parts.append(_by_blocks(_probabilities(scores), block))
    return torch.cat(parts, 2)


def _scores(query, key, scale):
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    return query.float() @ key.float().transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)


def _probabilities(scores):
    blind = scores.amax(-1, keepdim=True) <= torch.finfo(torch.float16).min  # additive masks use a lowest number too
    return torch.softmax(scores.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0)


def _by_blocks(probabilities, block):
    queries, keys = probabilities.shape[-2:]
    padded = F.pad(probabilities, (0, -keys % block, 0, -queries % block))
    shape = (*padded.shape[:2], padded.shape[2] // block, block, padded.shape[3] // block, block)
    sums = padded.view(shape).sum((3, 5))
    return sums / sums.sum(-1, keepdim=True).clamp(min=torch.finfo(sums.dtype).tiny)
