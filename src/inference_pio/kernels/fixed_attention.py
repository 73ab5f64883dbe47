"""Attention that reads only what a fixed pattern keeps: in torch anywhere, through the Triton kernels where they serve.

The plain truth is `kernels.fixed_pattern.naive_fixed_pattern_attention`.
"""

from __future__ import annotations

import functools

import torch

from inference_pio.kernels.attention import fused_attention
from inference_pio.kernels.fixed_pattern import KEY_BLOCK, QUERY_BLOCK, FixedPattern
from inference_pio.kernels.page_list import PageList
from inference_pio.kernels.triton.attention_support import supports

TRITON, GATHERED = "triton", "gathered"
GATHERED_KEYS = 16384
"""Keys that are gathered at a time: enough that the threads of a CPU seldom wait for one another."""


def fixed_pattern_attention(query, key, value, pattern, *, scale=None):
    """`query` [B, H, S, D] over `key`, `value` [B, key heads, L, D], the last query at the last key: [B, S, H, D], and
    the name of the backend that served."""
    if query.is_cuda and supports(query, key, value):
        attend = triton_decode if query.shape[2] == 1 else triton_prefill
        return attend(query, key, value, pattern, scale=scale), TRITON
    return gathered_attention(query, key, value, pattern, scale=scale), GATHERED


def gathered_attention(query, key, value, pattern, *, scale=None):
    """Blocks of queries over the keys that they keep, gathered; no more than `GATHERED_KEYS` of a row are held."""
    queries, length = query.shape[2], key.shape[2]
    first = length - queries
    out = query.new_empty(query.shape[0], queries, query.shape[1], value.shape[-1])
    start = first
    if first == 0 and queries > 1:
        start = min(pattern.whole_until, length)
        whole = fused_attention(*(part[:, :, :start] for part in (query, key, value)), causal=True, scale=scale)
        out[:, :start] = whole.transpose(1, 2)
    while start < length:
        blocks, stop = _alike(pattern, start, length)
        for row in range(query.shape[0]):
            served = _blocks_of_one_row(
                query[row, :, start - first : stop - first],
                key[row],
                value[row],
                _kept_tokens(pattern, start, stop, query.device),
                blocks,
                scale,
            )
            out[row, start - first : stop - first] = served.transpose(1, 2).flatten(0, 1)
        start = stop
    return out


def _blocks_of_one_row(query, key, value, kept, blocks, scale):
    """`blocks` blocks of queries [H, S, D] side by side as a batch, each over its own share of the `kept` keys."""
    query = query.unflatten(1, (blocks, -1)).transpose(0, 1)
    key, value = (part.index_select(1, kept).unflatten(1, (blocks, -1)).transpose(0, 1) for part in (key, value))
    rows, columns = query.shape[2], key.shape[2]
    mask = _staircase(rows, columns, query.dtype, query.device) if rows > 1 else None
    return fused_attention(query, key, value, mask, scale=scale)


def triton_prefill(query, key, value, pattern, *, scale=None):
    """Through lists of blocks, made for blocks of queries that begin at multiples of 128."""
    from inference_pio.kernels.triton.flash import flash_attention, launch_for

    queries, length = query.shape[2], key.shape[2]
    first = length - queries
    out = query.new_empty(query.shape[0], queries, query.shape[1], query.shape[3])
    launch = launch_for(key, value)
    for start, stop in _aligned_parts(first, length):
        flash_attention(
            query[:, :, start - first : stop - first], key[:, :, :stop], value[:, :, :stop], scale=scale,
            lists=pattern.lists(start, stop - start, tuple(query.shape[:2]), launch.query_block,
                                query.device),
            out=out[:, start - first : stop - first].transpose(1, 2),
        )  # fmt: skip
    return out


def triton_decode(query, key, value, pattern, *, scale=None):
    """One new token a row, over the listed pages."""
    from inference_pio.kernels.triton.decode import decode_attention

    pages, lengths = _page_list(pattern, key.shape[2], tuple(key.shape[:2]), query.device)
    tokens = key.transpose(1, 2), value.transpose(1, 2)
    return decode_attention(query[:, :, 0], *tokens, lengths, pages=pages, scale=scale)[:, None]


def _aligned_parts(first: int, length: int) -> list[tuple[int, int]]:
    """The positions from `first` to `length`, parted so that all but the first part begin at a multiple of 128.

    >>> _aligned_parts(0, 300), _aligned_parts(100, 300)
    ([(0, 300)], [(100, 128), (128, 300)])
    """
    border = -(-first // QUERY_BLOCK) * QUERY_BLOCK
    return [(first, border), (border, length)] if first < border < length else [(first, length)]


def _alike(pattern: FixedPattern, start: int, length: int) -> tuple[int, int]:
    """How many blocks of queries, from position `start` on, keep equally many keys, and where they end."""
    end = min(start - start % QUERY_BLOCK + QUERY_BLOCK, length)
    if start % QUERY_BLOCK or end % QUERY_BLOCK:
        return 1, end
    count, blocks = len(pattern.blocks(start // QUERY_BLOCK)), 1
    most = max(1, GATHERED_KEYS // (count * KEY_BLOCK))
    while blocks < most and end + QUERY_BLOCK <= length and len(pattern.blocks(end // QUERY_BLOCK)) == count:
        blocks, end = blocks + 1, end + QUERY_BLOCK
    return blocks, end


@functools.lru_cache(maxsize=256)
def _kept_tokens(pattern: FixedPattern, start: int, stop: int, device: torch.device) -> torch.Tensor:
    """The keys that each block of queries between two positions keeps, one block's behind the other's."""
    found = []
    while start < stop:
        end = min(start - start % QUERY_BLOCK + QUERY_BLOCK, stop)
        found += [torch.arange(*kept, device=device) for kept in pattern.ranges(start, end)]
        start = end
    return torch.cat(found)


@functools.lru_cache(maxsize=8)
def _staircase(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Of its gathered keys a query sees all but those behind it; additive, which the kernels need not convert."""
    seen = torch.ones(rows, columns, dtype=torch.bool, device=device).tril(columns - rows)
    return torch.zeros(rows, columns, dtype=dtype, device=device).masked_fill(~seen, float("-inf"))


@functools.lru_cache(maxsize=8)  # every layer of a model asks for the same
def _page_list(pattern: FixedPattern, length: int, shape: tuple[int, int], device: torch.device):
    pages = torch.tensor(pattern.pages(length), dtype=torch.int32, device=device)
    counts = torch.full(shape, len(pages), dtype=torch.int32, device=device)
    lengths = torch.full((1,), length, dtype=torch.int32, device=device)
    return PageList(counts, pages.expand(*shape, -1).contiguous()), lengths
