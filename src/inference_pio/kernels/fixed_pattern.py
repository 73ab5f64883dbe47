"""A fixed pattern of attention: the first tokens, a window before the query, and columns at regular distances.

It depends on positions alone, so that its blocks can be counted, listed and read without looking at a tensor.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch

from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.block_sparse import BlockList

QUERY_BLOCK = 128
"""Queries that keep the same blocks of keys."""
KEY_BLOCK = 64
"""Keys are kept or left out in such blocks, which are the pages of a cache as well."""


@dataclass(frozen=True)
class FixedPattern:
    """Of the keys at or before it a query sees, in whole blocks of 64: the first `sinks` tokens, the `window` tokens
    before the block of 128 queries it stands in, and that block itself; with a `stride`, the block at every multiple of
    so many tokens too.

    Positions count from a row's first token, whatever part of the row is computed at a time: a prompt as a whole, in
    pieces, or token by token sees the same keys.

    >>> FixedPattern(sinks=64, window=64).blocks(2)
    (0, 3, 4, 5)
    """

    sinks: int
    window: int
    stride: int = 0

    def blocks(self, query_block: int) -> tuple[int, ...]:
        """The blocks of keys, ascending, that a block of queries keeps; the last two hold its own tokens."""
        diagonal = (query_block + 1) * QUERY_BLOCK // KEY_BLOCK
        first = max(0, query_block * QUERY_BLOCK // KEY_BLOCK - self._window_blocks)
        columns = range(0, first, self.stride // KEY_BLOCK) if self.stride else ()
        return tuple(sorted({*range(min(self._sink_blocks, first)), *columns, *range(first, diagonal)}))

    def ranges(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The keys kept by the queries from `start` to `stop`, all of one block of queries, as ranges of tokens."""
        blocks = [block for block in self.blocks(start // QUERY_BLOCK) if block * KEY_BLOCK < stop]
        runs = itertools.groupby(enumerate(blocks), lambda pair: pair[1] - pair[0])
        found = [[block for _, block in run] for _, run in runs]
        return [(run[0] * KEY_BLOCK, min((run[-1] + 1) * KEY_BLOCK, stop)) for run in found]

    @property
    def whole_until(self) -> int:
        """The number of tokens up to which nothing is left out."""
        return ((self._sink_blocks + self._window_blocks) * KEY_BLOCK // QUERY_BLOCK + 1) * QUERY_BLOCK

    def mask(self, queries: int, keys: int, device: torch.device | None = None) -> torch.Tensor:
        """Which keys each query sees, the last query at the last key: boolean [queries, keys]."""
        query = torch.arange(keys - queries, keys, device=device)[:, None]
        block = torch.arange(keys, device=device)[None] // KEY_BLOCK
        kept = (block < self._sink_blocks) | (block >= query // QUERY_BLOCK * 2 - self._window_blocks)
        if self.stride:
            kept = kept | (block % (self.stride // KEY_BLOCK) == 0)
        return kept & (torch.arange(keys, device=device)[None] <= query)

    def kept(self, queries: int, keys: int) -> torch.Tensor:
        """Which blocks of 64 keys are kept by so many blocks of 64 queries, from the first on: boolean."""
        kept = torch.zeros(queries, keys, dtype=torch.bool)
        for row in range(queries):
            kept[
                row, [block for block in self.blocks(row * KEY_BLOCK // QUERY_BLOCK) if block <= min(row, keys - 1)]
            ] = True
        return kept

    def lists(
        self, first: int, queries: int, shape: tuple[int, int], query_block: int, device: torch.device
    ) -> BlockList:
        """The lists for queries from position `first` on, for `shape` rows of a batch and heads.

        They begin at a multiple of 128, or are all of one block of 128.
        """
        return _lists(self, first, queries, shape, query_block, device)

    def pages(self, length: int) -> tuple[int, ...]:
        """The pages that the last token of a row of `length` tokens reads, ascending."""
        return tuple(start // KEY_BLOCK + page for start, stop in self.ranges(length - 1, length)
                     for page in range(-(-(stop - start) // KEY_BLOCK)))  # fmt: skip

    def seen(self, first: int, length: int) -> int:
        """Pairs of a query and a key it sees, for the queries from position `first` up to `length`."""
        return _seen(self, first, length)

    @property
    def _sink_blocks(self) -> int:
        return -(-self.sinks // KEY_BLOCK)

    @property
    def _window_blocks(self) -> int:
        return -(-self.window // KEY_BLOCK)


def naive_fixed_pattern_attention(query, key, value, pattern, starts=None, *, scale=None):
    """Softmax over the keys of the pattern alone, float32; `[B, H, S, D]`, the last query at the last key.

    Row b begins at token `starts[b]`: what lies before it is padding, whose queries give zeros.
    """
    outs = []
    for row, start in enumerate(starts if starts is not None else [0] * query.shape[0]):
        seen = torch.zeros(query.shape[2], key.shape[2], dtype=torch.bool)
        length = key.shape[2] - start
        queries = min(query.shape[2], length)
        if queries > 0:
            seen[-queries:, start:] = pattern.mask(queries, length)
        one = slice(row, row + 1)
        outs.append(naive_attention(query[one], key[one], value[one], seen, scale=scale).nan_to_num(0.0))
    return torch.cat(outs)


def causal_pairs(first: int, length: int) -> int:
    """Pairs of a query and a key at or before it, for the queries from position `first` up to `length`.

    >>> causal_pairs(0, 3), causal_pairs(2, 3)
    (6, 3)
    """
    return (length * (length + 1) - first * (first + 1)) // 2


@functools.lru_cache(maxsize=256)
def _seen(pattern: FixedPattern, first: int, length: int) -> int:
    total = 0
    for start in range(first - first % QUERY_BLOCK, length, QUERY_BLOCK):
        begin, end = max(start, first), min(start + QUERY_BLOCK, length)
        kept = sum(stop - begin for begin, stop in pattern.ranges(begin, end))
        total += (end - begin) * kept - (end - begin) * (end - begin - 1) // 2
    return total


@functools.lru_cache(maxsize=8)  # every layer of a model asks for the same
def _lists(
    pattern: FixedPattern, first: int, queries: int, shape: tuple[int, int], query_block: int, device: torch.device
) -> BlockList:
    rows = [
        [block for block in pattern.blocks((first + start) // QUERY_BLOCK)
         if block * KEY_BLOCK < first + min(start + query_block, queries)]
        for start in range(0, queries, query_block)
    ]  # fmt: skip
    longest = max(map(len, rows))
    counts = torch.tensor([len(row) for row in rows], dtype=torch.int32, device=device)
    indices = torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.int32, device=device)
    spread = counts.expand(*shape, -1).contiguous(), indices.expand(*shape, -1, -1).contiguous()
    return BlockList(*spread, query_block, KEY_BLOCK)
