"""Two calls joined by the logs of their sums are one attention: on awkward lengths, by the CPU's own kernel."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.joined_attention import STEP, join, joined_attention, naive_join, pays

LENGTHS = [(2, 3), (5, 6), (11, 45), (37, 300), (64, 65), (129, 131)]
CLOSE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def drawn(rows: int, heads: int, tokens: int, width: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, tokens, heads, width, generator=generator).to(dtype).transpose(1, 2)


def true(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """In float32, each query seeing the keys up to its own place."""
    queries, keys = query.shape[2], key.shape[2]
    seen = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    return naive_attention(query, key, value, seen, scale=scale)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(6, 2, 32), (4, 4, 64)])
def test_it_is_attention_whose_last_query_stands_at_the_last_key(
    queries: int, keys: int, heads: int, key_heads: int, width: int, dtype: torch.dtype
) -> None:
    query = drawn(2, heads, queries, width, 0, dtype)
    key, value = (drawn(2, key_heads, keys, width, seed, dtype) for seed in (1, 2))
    for scale in (None, 0.7):
        found, wanted = joined_attention(query, key, value, scale=scale), true(query, key, value, scale)
        assert found.dtype == dtype
        assert ((found.float() - wanted).abs() / wanted.abs().clamp(min=1)).max() < CLOSE[dtype]


def test_one_side_may_hold_all_of_the_attention() -> None:
    query = drawn(1, 2, 5, 16, 0, torch.float32)
    key, value = (drawn(1, 2, 9, 16, seed, torch.float32) for seed in (1, 2))
    for hot in (slice(0, 4), slice(4, 5)):
        there = key.clone()
        there[:, :, hot] = 1e3 * query[:, :, :1]
        torch.testing.assert_close(joined_attention(query, there, value), true(query, there, value))


def test_joining_takes_the_place_of_the_first() -> None:
    out, other = (drawn(2, 3, 7, 8, seed, torch.float32) for seed in range(2))
    logs, others = torch.randn(2, 3, 7) * 50, torch.randn(2, 3, 7) * 50
    wanted = naive_join(out, logs, other, others)
    assert join(out, logs, other, others) is out
    torch.testing.assert_close(out, wanted)


def test_only_lengths_that_prompts_in_pieces_have_in_common_are_joined() -> None:
    assert [pays(each, keys) for each, keys in ((STEP, 2 * STEP), (4 * STEP, 32 * STEP), (STEP, 9 * STEP))] == [
        True
    ] * 3
    assert not any(pays(*lengths) for lengths in ((STEP, STEP), (STEP, STEP + 1), (7, STEP), (2 * STEP + 1, 4 * STEP)))
