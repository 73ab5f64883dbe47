"""A fixed pattern's blocks, lists, pages and counts all say what its mask says."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.fixed_pattern import (
    KEY_BLOCK,
    QUERY_BLOCK,
    FixedPattern,
    causal_pairs,
    naive_fixed_pattern_attention,
)

PATTERNS = [
    FixedPattern(sinks=64, window=64),
    FixedPattern(sinks=0, window=100),
    FixedPattern(sinks=130, window=1),
    FixedPattern(sinks=64, window=128, stride=256),
    FixedPattern(sinks=0, window=64, stride=64),
]
EACH = pytest.mark.parametrize("pattern", PATTERNS, ids=str)


@EACH
def test_every_query_sees_the_sinks_its_window_and_itself_and_nothing_later(pattern: FixedPattern) -> None:
    mask = pattern.mask(900, 900)
    for query in (0, 1, 127, 128, 500, 899):
        assert mask[query, query]
        assert mask[query, : min(pattern.sinks, query + 1)].all()
        assert mask[query, max(0, query - pattern.window) : query + 1].all()
        assert not mask[query, query + 1 :].any()
    assert pattern.stride == 64 or not mask.tril().equal(torch.ones_like(mask).tril())


@EACH
def test_what_is_computed_at_a_time_changes_nothing(pattern: FixedPattern) -> None:
    whole = pattern.mask(700, 700)
    for first, last in ((0, 1), (100, 300), (127, 129), (690, 700), (699, 700)):
        assert torch.equal(pattern.mask(last - first, last), whole[first:last, :last])


@EACH
def test_ranges_and_pages_are_those_of_the_mask(pattern: FixedPattern) -> None:
    whole = pattern.mask(700, 700)
    for length in (1, 64, 65, 128, 300, 513, 700):
        kept = torch.zeros(length, dtype=torch.bool)
        for start, stop in pattern.ranges(length - 1, length):
            kept[start:stop] = True
        assert torch.equal(kept, whole[length - 1, :length])
        pages = whole[length - 1, :length].nonzero()[:, 0].div(KEY_BLOCK, rounding_mode="floor").unique()
        assert list(pattern.pages(length)) == pages.tolist()


@EACH
@pytest.mark.parametrize("query_block", [QUERY_BLOCK, 64])
@pytest.mark.parametrize(("first", "queries"), [(0, 700), (256, 300), (640, 5), (650, 9)])
def test_lists_hold_what_the_mask_keeps(pattern: FixedPattern, query_block: int, first: int, queries: int) -> None:
    lists = pattern.lists(first, queries, (2, 3), query_block, torch.device("cpu"))
    assert lists.counts.shape == (2, 3, -(-queries // query_block))
    assert lists.indices.is_contiguous()
    listed = torch.zeros(queries, first + queries, dtype=torch.bool)
    for row, (count, blocks) in enumerate(zip(lists.counts[1, 2].tolist(), lists.indices[1, 2].tolist(), strict=True)):
        assert blocks[:count] == sorted(set(blocks[:count]))
        for block in blocks[:count]:
            seen = slice(row * query_block, (row + 1) * query_block), slice(block * KEY_BLOCK, (block + 1) * KEY_BLOCK)
            assert listed[seen].numel() > 0
            listed[seen] = True
    causal = torch.ones(queries, first + queries, dtype=torch.bool).tril(first)
    assert torch.equal(listed & causal, pattern.mask(queries, first + queries))


@EACH
def test_pairs_are_counted_as_the_mask_has_them(pattern: FixedPattern) -> None:
    for first, length in ((0, 1), (0, 700), (100, 300), (699, 700)):
        assert pattern.seen(first, length) == int(pattern.mask(length - first, length).sum())
        assert causal_pairs(first, length) == int(torch.ones(length - first, length).tril(first).sum())


@EACH
def test_nothing_is_left_out_up_to_whole_until_and_something_behind_it(pattern: FixedPattern) -> None:
    until = pattern.whole_until
    assert pattern.mask(until, until).equal(torch.ones(until, until, dtype=torch.bool).tril())
    if not pattern.stride:
        assert not pattern.mask(1, until + 1).all()


@EACH
def test_kept_blocks_by_blocks_of_64_are_those_of_the_mask(pattern: FixedPattern) -> None:
    expected = pattern.mask(640, 640)[KEY_BLOCK - 1 :: KEY_BLOCK, ::KEY_BLOCK]
    assert torch.equal(pattern.kept(10, 10), expected)


def test_the_reference_of_a_padded_row_is_that_of_the_row_alone() -> None:
    query, key, value = (torch.randn(2, heads, 400, 16) for heads in (4, 2, 2))
    pattern = FixedPattern(64, 64)
    both = naive_fixed_pattern_attention(query, key, value, pattern, [0, 70])
    alone = naive_fixed_pattern_attention(query[1:, :, 70:], key[1:, :, 70:], value[1:, :, 70:], pattern)
    torch.testing.assert_close(both[1:, :, 70:], alone, rtol=1e-5, atol=1e-6)
    assert not both[1, :, :70].any()
