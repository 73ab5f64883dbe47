from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.attention_mass import attention_mass, naive_attention_mass


def draw(heads: int, key_heads: int, queries: int, keys: int, width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(queries * keys)
    return (
        torch.randn(2, heads, queries, width, generator=generator),
        torch.randn(2, key_heads, keys, width, generator=generator),
    )


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 67), (64, 64), (65, 65), (37, 131), (200, 200)])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 2), (3, 3), (4, 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_row_by_row_is_the_naive_mass(queries: int, keys: int, heads: int, key_heads: int, causal: bool) -> None:
    query, key = draw(heads, key_heads, queries, keys)
    naive = naive_attention_mass(query, key, causal=causal, block=16)
    torch.testing.assert_close(attention_mass(query, key, causal=causal, block=16, rows=32), naive)
    torch.testing.assert_close(naive.sum(-1), torch.ones_like(naive.sum(-1)))


@pytest.mark.parametrize("additive", [False, True])
def test_masks_of_both_kinds_hide_and_blind_queries_count_for_nothing(additive: bool) -> None:
    query, key = draw(2, 2, 40, 40)
    seen = torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(1)) < 0.5
    seen[0, :, :16] = False
    seen[..., 16:, 3] = True
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min) if additive else seen
    naive = naive_attention_mass(query, key, mask, block=16)
    torch.testing.assert_close(attention_mass(query, key, mask, block=16, rows=16), naive)
    assert bool((naive[0, :, 0] == 0).all())
    torch.testing.assert_close(naive[0, :, 1:].sum(-1), torch.ones(2, 2))
