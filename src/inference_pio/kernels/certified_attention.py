"""Attention that leaves out what provably does not matter: tiles of scores far below the largest one seen so far.

Skip-softmax (BLASST, arXiv 2512.12087) with the threshold `eps / keys`: a key that is left out weighs less than that
share of the row's largest weight, which is a share of the whole; all of them together then weigh less than `eps`.
"""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F


def certified_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, eps: float, query_block: int = 128,
    key_block: int = 64, scale: float | None = None, starts: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Causal attention of `[B, H, S, D]` over `[B, key heads, L, D]` that drops at most `eps` of the mass of every row;
    with it the tiles that were kept and those that hold a visible key, boolean [B, H, query blocks, key blocks].

    A tile is dropped if for each of its queries all scores lie log(keys / eps) below the largest score met before, on
    the way from the tiles that hold the queries themselves over the first tile to the last.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    outs, tiles, visible = [], [], []
    for first in range(0, query.shape[2], query_block):
        part = query[:, :, first : first + query_block]
        scores, seen = _scores(part, key, first, query.shape[2], scale, starts)
        kept = _kept_tiles(scores, eps, key_block, -(-part.shape[2] // key_block))
        wide = kept.repeat_interleave(key_block, -1)[..., None, : scores.shape[-1]]
        weights = torch.softmax(scores.masked_fill(~wide, float("-inf")), -1).masked_fill(~seen, 0.0)
        values = value[:, :, None, : scores.shape[-1]]
        outs.append((weights.to(value.dtype).unflatten(1, (value.shape[1], -1)) @ values).flatten(1, 2))
        behind = -(-key.shape[2] // key_block) - kept.shape[-1]
        tiles.append(F.pad(kept, (0, behind)))
        visible.append(F.pad(_by_tiles(seen.any(-2), key_block).expand_as(kept), (0, behind)))
    return torch.cat(outs, 2), torch.stack(tiles, 2), torch.stack(visible, 2)


def dropped_mass(query, key, kept, *, query_block=128, key_block=64, scale=None, starts=None):
    """The share of each query's exact attention that lies on tiles that were not kept: float64 [B, H, S]."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    parts = []
    for number, first in enumerate(range(0, query.shape[2], query_block)):
        part = query[:, :, first : first + query_block].double()
        scores, seen = _scores(part, key.double(), first, query.shape[2], scale, starts)
        wide = kept[:, :, number].repeat_interleave(key_block, -1)[..., None, : scores.shape[-1]]
        shares = torch.softmax(scores, -1).masked_fill(~seen | wide, 0.0)
        parts.append(shares.sum(-1))
    return torch.cat(parts, 2)


def _scores(part, key, first, queries, scale, starts):
    """Scores of some queries, `-inf` where a key is not seen, and what is seen."""
    offset = key.shape[2] - queries
    end = offset + first + part.shape[2]
    grouped = part.unflatten(1, (key.shape[1], -1))
    scores = (grouped @ key[:, :, None, :end].transpose(-1, -2)).flatten(1, 2) * scale
    scores = scores if scores.dtype == torch.float64 else scores.float()
    tokens = torch.arange(end, device=key.device)
    seen = (tokens <= torch.arange(offset + first, end, device=key.device)[:, None])[None, None]
    if starts is not None:
        seen = seen & (tokens >= starts[:, None])[:, None, None]
    return scores.masked_fill(~seen, float("-inf")), seen


def _by_tiles(seen, key_block):
    return F.pad(seen, (0, -seen.shape[-1] % key_block)).unflatten(-1, (-1, key_block)).any(-1)


def _kept_tiles(scores, eps, key_block, near):
    """Tiles in which some row has a score within log(keys / eps) of the largest it met before, the last `near` tiles
    being met first: boolean [B, H, tiles]."""
    width = scores.shape[-1]
    highest = F.pad(scores, (0, -width % key_block), value=float("-inf")).unflatten(-1, (-1, key_block)).amax(-1)
    met = highest.roll(near, -1)
    before = F.pad(met.cummax(-1).values[..., :-1], (1, 0), value=float("-inf"))
    kept = (met >= before + log(eps / width)) & (met > float("-inf"))
    return kept.any(-2).roll(-near, -1)
