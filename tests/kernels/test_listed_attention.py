"""Attention over gathered blocks is the naive one over the same lists, at odd lengths, with history and padding."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.block_choice import seen_blocks
from inference_pio.kernels.block_sparse import BlockList, naive_block_sparse_attention
from inference_pio.kernels.decode_attention import naive_decode_attention
from inference_pio.kernels.listed_attention import gathered_attention, gathered_decode


def _tensors(queries, keys, heads=4, key_heads=2, width=24, value_width=None, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return (
        torch.randn(2, heads, queries, width, generator=chance),
        torch.randn(2, key_heads, keys, width, generator=chance),
        torch.randn(2, key_heads, keys, value_width or width, generator=chance),
    )


@pytest.mark.parametrize(("queries", "keys"), [(200, 200), (130, 300), (64, 64), (1, 100), (257, 257)])
@pytest.mark.parametrize("query_block", [64, 128])
def test_gathered_is_naive(queries, keys, query_block) -> None:
    query, key, value = _tensors(queries, keys, value_width=40)
    seen = seen_blocks(queries, keys, query_block, 64)
    kept = (torch.rand(2, 4, *seen.shape[-2:], generator=torch.Generator().manual_seed(1)) < 0.5) & seen
    kept[..., 0] = True
    lists = BlockList.from_kept(kept, query_block, 64)
    got = gathered_attention(query, key, value, lists, scale=0.2)
    expected = naive_block_sparse_attention(query, key, value, lists, scale=0.2)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_padding_is_left_out_and_blind_queries_give_zeros() -> None:
    query, key, value = _tensors(150, 150)
    starts = torch.tensor([0, 70])
    key[1, :, :70] = 50.0
    seen = seen_blocks(150, 150, 64, 64, starts=starts)
    kept = seen.expand(2, 4, -1, -1) & torch.ones(2, 4, *seen.shape[-2:], dtype=torch.bool)
    got = gathered_attention(query, key, value, BlockList.from_kept(kept, 64, 64), starts=starts)
    tokens = torch.arange(150)
    mask = (tokens <= tokens[:, None]) & (tokens >= starts[:, None, None])
    expected = naive_attention(query, key, value, mask[:, None]).nan_to_num(0.0)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert bool((got[1, :, :70] == 0).all())


@pytest.mark.parametrize("keys", [64, 100, 257])
@pytest.mark.parametrize("padded", [False, True])
def test_one_token_over_kept_pages_is_naive(keys, padded) -> None:
    query, key, value = _tensors(1, keys)
    pages = torch.rand(2, 2, -(-keys // 64), generator=torch.Generator().manual_seed(keys)) < 0.6
    pages[..., -1] = True
    starts = torch.tensor([0, 30]) if padded else None
    got = gathered_decode(query, key, value, pages, starts=starts)
    expected = naive_decode_attention(
        query[:, :, 0], key.transpose(1, 2), value.transpose(1, 2), torch.tensor([keys]), starts, pages=pages
    )
    torch.testing.assert_close(got[:, :, 0], expected, rtol=1e-4, atol=1e-5)
