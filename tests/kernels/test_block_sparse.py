"""Lists of blocks and masks say the same; attention over lists is attention under their mask."""

from __future__ import annotations

import torch

from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.block_sparse import BlockList, naive_block_sparse_attention


def test_lists_and_the_blocks_they_were_made_of_are_one() -> None:
    kept = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    lists = BlockList.from_kept(kept, 8, 16)
    assert torch.equal(lists.kept(), kept)
    for row, count in zip(lists.indices.flatten(0, 2), lists.counts.flatten(), strict=True):
        front = row[:count].tolist()
        assert front == sorted(front)
    mask = lists.mask(30, 70)
    assert mask.shape == (2, 3, 30, 70)
    assert torch.equal(mask[:, :, ::8, ::16], kept)


def test_every_block_listed_is_dense_attention() -> None:
    query, key, value = torch.randn(3, 1, 2, 20, 8, generator=torch.Generator().manual_seed(1))
    lists = BlockList.from_kept(torch.ones(1, 2, 3, 3, dtype=torch.bool), 8, 8)
    torch.testing.assert_close(
        naive_block_sparse_attention(query, key, value, lists), naive_attention(query, key, value, causal=True)
    )


def test_queries_without_a_block_give_zeros_and_the_last_query_stands_at_the_last_key() -> None:
    query, key, value = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 6, 8), torch.randn(1, 1, 6, 8)
    lists = BlockList.from_kept(torch.tensor([[[[True, False], [False, False]]]]), 2, 3)
    out = naive_block_sparse_attention(query, key, value, lists)
    assert not out[:, :, 2:].any()
    torch.testing.assert_close(
        out[0, 0, 0], torch.softmax(key[0, 0, :3] @ query[0, 0, 0] / 8**0.5, -1) @ value[0, 0, :3]
    )
