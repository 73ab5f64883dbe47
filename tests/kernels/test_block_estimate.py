"""Estimates by block: what they are by definition, at odd lengths, with history, padding and shared heads."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.block_estimate import (
    ESTIMATES,
    SPAN,
    STRIDE,
    block_means,
    estimate_by_antidiagonals,
    estimate_by_means,
    estimate_of_spans,
    last_positions,
    span_scores,
    visible_blocks,
)

SIZES = [(128, 128), (200, 200), (64, 321), (130, 257), (1, 65)]


def _tensors(queries: int, keys: int, heads: int = 4, key_heads: int = 2, width: int = 16, batch: int = 2):
    chance = torch.Generator().manual_seed(queries + keys)
    query = torch.randn(batch, heads, queries, width, generator=chance)
    return query, torch.randn(batch, key_heads, keys, width, generator=chance)


def _naive_by_means(query, key, query_block, key_block, scale, starts):
    """Span by span and row by row from the definition."""
    batch, heads, queries, _ = query.shape
    keys, group = key.shape[2], heads // key.shape[1]
    out = torch.zeros(batch, heads, -(-queries // query_block), -(-keys // key_block))
    for row in range(batch):
        start = int(starts[row]) if starts is not None else 0
        for head in range(heads):
            for block in range(out.shape[2]):
                shares = []
                for first in range(block * query_block, min((block + 1) * query_block, queries), SPAN):
                    span = range(first, min(first + SPAN, queries))
                    mine = [t for t in span if t + keys - queries >= start]
                    mean_query = query[row, head, mine].mean(0) if mine else torch.zeros(query.shape[-1])
                    scores = torch.full((-(-keys // SPAN),), float("-inf"))
                    for number in range(scores.numel()):
                        held = [t for t in range(number * SPAN, min((number + 1) * SPAN, keys)) if t >= start]
                        if held and number * SPAN <= keys - queries + span[-1]:
                            scores[number] = mean_query @ key[row, head // group, held].mean(0) * scale
                    shares.append(torch.softmax(scores, 0).nan_to_num(0.0))
                mean = torch.stack(shares).mean(0)
                for number in range(mean.numel()):
                    out[row, head, block, number * SPAN // key_block] += mean[number]
    return out


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("blocks", [(64, 64), (128, 64), (128, 128)])
@pytest.mark.parametrize("padded", [False, True])
def test_means_are_what_they_are_defined_to_be(sizes, blocks, padded) -> None:
    query, key = _tensors(*sizes)
    starts = torch.tensor([0, min(70, sizes[1] - 1)]) if padded else None
    got = estimate_by_means(query, key, query_block=blocks[0], key_block=blocks[1], scale=0.3, starts=starts)
    torch.testing.assert_close(got, _naive_by_means(query, key, *blocks, 0.3, starts), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", list(ESTIMATES))
def test_each_row_sums_to_one_and_nothing_later_is_seen(sizes, name) -> None:
    query, key = _tensors(*sizes)
    got = ESTIMATES[name](query, key, query_block=128, key_block=64)
    torch.testing.assert_close(got.sum(-1), torch.ones(got.shape[:-1]))
    assert bool((got.masked_select(~visible_blocks(*sizes, 128, 64)) == 0).all())


def test_antidiagonals_count_every_pair_once() -> None:
    query, key = _tensors(STRIDE, STRIDE, heads=1, key_heads=1, batch=1)
    alone = torch.zeros_like(key)
    alone[0, 0, 5] = key[0, 0, 5]  # one key meets one query of the strip, the eleventh
    grown = torch.cat((alone, torch.zeros_like(key)), 2)
    both = torch.cat((torch.zeros_like(query), query), 2)
    got = estimate_by_antidiagonals(both, grown, query_block=64, key_block=64, scale=1.0)
    assert got.shape == (1, 1, 1, 1)
    strips = torch.softmax(torch.tensor([float(query[0, 0, 10] @ key[0, 0, 5]) / STRIDE, 0.0]), 0)
    wide = torch.cat((alone, torch.zeros(1, 1, 48, 16), torch.zeros_like(key)), 2)
    got = estimate_by_antidiagonals(query, wide, query_block=64, key_block=64, scale=1.0)
    others = 4 * torch.exp(torch.tensor(0.0))
    first = torch.exp(torch.tensor(float(query[0, 0, 10] @ key[0, 0, 5]) / STRIDE))
    torch.testing.assert_close(got[0, 0, 0, 0], (first + 3) / (first + others))
    assert strips.sum() == pytest.approx(1.0)


def test_means_leave_padding_out_whatever_it_holds() -> None:
    tensor = torch.randn(1, 1, 130, 4)
    held = tensor.clone()
    tensor[:, :, :70] = float("nan")
    got = block_means(tensor, 64, torch.tensor([70]))
    torch.testing.assert_close(got[0, 0, 1], held[0, 0, 70:128].mean(0))
    assert bool((got[0, 0, 0] == 0).all())
    torch.testing.assert_close(got[0, 0, 2], held[0, 0, 128:].mean(0))


def test_positions_of_the_last_queries() -> None:
    assert last_positions(130, 130, 64).tolist() == [63, 127, 129]
    assert visible_blocks(1, 129, 128, 64).tolist() == [[True, True, True]]


@pytest.mark.parametrize("blocks", [(64, 64), (128, 64), (128, 128)])
@pytest.mark.parametrize("padded", [False, True])
def test_some_blocks_of_queries_are_estimated_alone(blocks, padded) -> None:
    query, key = _tensors(400, 530)
    starts = torch.tensor([0, 140]) if padded else None
    sizes = {"query_block": blocks[0], "key_block": blocks[1]}
    whole = estimate_by_means(query, key, scale=0.3, starts=starts, **sizes)
    scores = span_scores(query, key, scale=0.3, starts=starts)
    assert scores.shape == (2, 4, 7, 9)
    for some in (torch.tensor([whole.shape[2] - 1, 0, 2]), torch.arange(whole.shape[2]).flip(0)):
        got = estimate_of_spans(scores, 400, 530, starts=starts, blocks=some, **sizes)
        assert torch.equal(got, whole[:, :, some])
