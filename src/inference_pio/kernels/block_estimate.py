"""Estimates of how much attention falls on each block of keys, from a few vectors of each block: softmax, then sums.

They are right up to a factor that differs from head to head, so whoever cuts by them must check them (`sparsity`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

SPAN = 64
"""Tokens that are averaged into one vector."""
STRIDE = 16
"""Tokens of a strip whose scores are summed along antidiagonals."""


def visible_blocks(queries, keys, query_block, key_block, device=None):
    """Which blocks of keys hold one that a query of the block may see, the last query standing at the last key:
    boolean [query blocks, key blocks].

    >>> visible_blocks(4, 6, 2, 2).tolist()
    [[True, True, False], [True, True, True]]
    """
    last = last_positions(queries, keys, query_block, device)
    return torch.arange(0, keys, key_block, device=device) <= last[:, None]


def last_positions(
    queries: int, keys: int, query_block: int, device: torch.device | None = None
) -> torch.Tensor:  # fmt: skip
    """Where the last query of each block stands among the keys: int64 [query blocks].

    >>> last_positions(5, 7, 2).tolist()
    [3, 5, 6]
    """
    ends = torch.arange(query_block, queries + query_block, query_block, device=device)
    return keys - queries - 1 + ends.clamp(max=queries)


def estimate_by_means(query, key, *, query_block, key_block, scale=None, starts=None):
    """Estimated attention [B, H, query blocks, key blocks] of `[B, H, S, D]` over `[B, key heads, L, D]`, causal, from
    the mean vectors of 64 queries and of 64 keys. Each row sums to 1, or to 0 where no query of the block sees a key.

    Pooled keys are FlashPrefill's, arXiv 2603.06199. Row b sees keys from `starts[b]` on.
    """
    scores = span_scores(query, key, scale=scale, starts=starts)
    return estimate_of_spans(
        scores, query.shape[2], key.shape[2], query_block=query_block, key_block=key_block, starts=starts
    )


def span_scores(
    query: torch.Tensor, key: torch.Tensor, *, scale: float | None = None, starts: torch.Tensor | None = None
) -> torch.Tensor:  # fmt: skip
    """Scores between the means of 64 queries of `[B, H, S, D]` and of 64 keys of `[B, key heads, L, D]`, none hidden:
    float32 [B, H, query spans, key spans]."""
    shift = query.shape[2] - key.shape[2]
    queries = block_means(query, SPAN, None if starts is None else starts + shift)
    return _scores(queries, block_means(key, SPAN, starts), query.shape[-1] ** -0.5 if scale is None else scale)


def estimate_of_spans(
    scores: torch.Tensor, queries: int, keys: int, *, query_block: int, key_block: int,
    starts: torch.Tensor | None = None, blocks: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """What `estimate_by_means` makes of `span_scores`; of some blocks of queries alone if their numbers are given."""
    return _estimate(scores, SPAN, queries, keys, query_block, key_block, starts, blocks)


def estimate_by_antidiagonals(query, key, *, query_block, key_block, scale=None, starts=None):
    """The same from sums along the antidiagonals of 16 x 16 scores, where every pair counts once: 256 times the work.

    XAttention, arXiv 2503.16428.
    """
    scale = (query.shape[-1] ** -0.5 if scale is None else scale) / STRIDE
    scores = _scores(_strips(query).flip(3).flatten(3), _strips(key).flatten(3), scale)
    return _estimate(scores, STRIDE, query.shape[2], key.shape[2], query_block, key_block, starts)


ESTIMATES: dict[str, Callable[..., torch.Tensor]] = {
    "mean": estimate_by_means,
    "antidiagonal": estimate_by_antidiagonals,
}


def block_means(tensor, block, starts=None):
    """Mean vector of each block of `[B, H, S, D]`: float32 [B, H, blocks, D]; tokens before a row's start do not count.

    >>> block_means(torch.tensor([[[[1.0], [3.0], [5.0]]]]), 2).flatten().tolist()
    [2.0, 5.0]
    """
    tokens = tensor.shape[2]
    counts = torch.full((-(-tokens // block),), block, dtype=torch.float32, device=tensor.device)
    counts[-1] -= -tokens % block
    counts = counts[None, None, :, None]
    if starts is not None:
        tensor = tensor.masked_fill((torch.arange(tokens, device=tensor.device) < starts[:, None])[:, None, :, None], 0)
        first = torch.arange(0, tokens, block, device=tensor.device)
        counts = counts - (starts[:, None] - first).clamp(0, block)[:, None, :, None]
    padded = F.pad(tensor, (0, 0, 0, -tokens % block)) if tokens % block else tensor
    return padded.unflatten(2, (-1, block)).sum(3, dtype=torch.float32) / counts.clamp(min=1.0)


def _strips(tensor):
    return F.pad(tensor, (0, 0, 0, -tensor.shape[2] % STRIDE)).unflatten(2, (-1, STRIDE)).float()


def _scores(queries, keys, scale):
    """Heads that share keys are one matrix product."""
    grouped = (queries * scale).unflatten(1, (keys.shape[1], -1)).flatten(2, 3)
    return (grouped @ keys.transpose(-1, -2)).unflatten(2, (-1, queries.shape[2])).flatten(1, 2)


def _estimate(scores, span, queries, keys, query_block, key_block, starts, blocks=None):
    """Softmax of the scores between vectors that stand for `span` tokens each, summed and averaged into blocks."""
    device, rows, total = scores.device, query_block // span, scores.shape[2]
    whole = blocks is None
    if whole:
        blocks = torch.arange(-(-queries // query_block), device=device)
    spans = (blocks[:, None] * rows + torch.arange(rows, device=device)).flatten()
    counted, picked = spans < total, spans.clamp(max=total - 1)
    if not whole or spans.numel() != total:
        scores = scores.index_select(2, picked)
    last = last_positions(queries, keys, span, device)[picked]
    seen = torch.arange(0, keys, span, device=device) <= last[:, None]
    if starts is not None:
        ends = torch.arange(span, keys + span, span, device=device)
        seen = seen & (ends > starts[:, None])[:, None, None]
    shares = torch.softmax(scores.masked_fill(~seen, float("-inf")), -1).nan_to_num(0.0)
    shares = F.pad(shares, (0, -shares.shape[-1] % (key_block // span))).unflatten(-1, (-1, key_block // span)).sum(-1)
    shares = (shares * counted[:, None]).unflatten(2, (-1, rows)).sum(3)
    return shares / counted.unflatten(0, (-1, rows)).sum(1)[:, None]
