"""Certified attention never drops more than it may, drops what it can, and is exact on the rest."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.certified_attention import certified_attention, dropped_mass


def _tensors(queries, keys, peaked, seed):
    chance = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 4, queries, 32, generator=chance) * peaked
    return query, *(torch.randn(2, 2, keys, 32, generator=chance) for _ in range(2))


@pytest.mark.parametrize("eps", [1e-3, 0.05, 0.3])
@pytest.mark.parametrize(("queries", "keys"), [(300, 300), (100, 517), (64, 64)])
@pytest.mark.parametrize("peaked", [1.0, 6.0, 30.0])
def test_no_row_loses_more_than_eps(eps, queries, keys, peaked) -> None:
    query, key, value = _tensors(queries, keys, peaked, seed=keys)
    out, kept, visible = certified_attention(query, key, value, eps=eps, query_block=64)
    lost = dropped_mass(query, key, kept, query_block=64)
    assert float(lost.max()) <= eps
    assert not bool((kept & ~visible).any())
    exact = naive_attention(query, key, value, _mask(queries, keys))
    bound = 2 * lost.float()[..., None] * value.abs().amax() + 1e-4
    assert bool(((out - exact).abs() <= bound).all())


def test_it_drops_tiles_where_all_queries_look_at_the_first_keys() -> None:
    query, key, value = _tensors(512, 512, 1.0, seed=3)
    query[..., 0], key[:, :, :4, 0] = 8.0, 20.0
    _, kept, visible = certified_attention(query, key, value, eps=0.05, query_block=64)
    assert int(kept.sum()) < 0.5 * int(visible.sum())


def test_with_almost_nothing_to_drop_it_is_exact() -> None:
    query, key, value = _tensors(130, 130, 1.0, seed=1)
    out, kept, visible = certified_attention(query, key, value, eps=1e-9)
    assert torch.equal(kept, visible)
    torch.testing.assert_close(out, naive_attention(query, key, value, causal=True), rtol=1e-4, atol=1e-5)


def test_padding_is_not_seen_and_blind_queries_give_zeros() -> None:
    query, key, value = _tensors(200, 200, 4.0, seed=2)
    starts = torch.tensor([0, 150])
    key[1, :, :150] = 90.0
    out, kept, visible = certified_attention(query, key, value, eps=0.1, query_block=64, starts=starts)
    assert float(dropped_mass(query, key, kept, query_block=64, starts=starts).max()) <= 0.1
    assert not bool((kept & ~visible).any())
    assert bool((out[1, :, :150] == 0).all())
    alone, *_ = certified_attention(query[1:, :, 150:], key[1:, :, 150:], value[1:, :, 150:], eps=1e-9)
    torch.testing.assert_close(out[1:, :, 150:], alone, rtol=0.5, atol=0.5)


def _mask(queries, keys):
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
