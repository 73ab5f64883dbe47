"""The exact attention of single rows: the fast way is the naive one, at odd sizes and in halves."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels import row_mass as row_mass_module
from inference_pio.kernels.attention_mass import naive_attention_mass
from inference_pio.kernels.row_mass import naive_row_mass, row_mass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("keys", "block"), [(128, 64), (131, 64), (70, 16), (1, 64)])
@pytest.mark.parametrize("padded", [False, True])
def test_in_pieces_as_by_definition(dtype, keys, block, padded) -> None:
    chance = torch.Generator().manual_seed(keys)
    positions = torch.randint(0, keys, (7,), generator=chance)
    query = torch.randn(2, 6, 7, 32, generator=chance).to(dtype)
    key = torch.randn(2, 2, keys, 32, generator=chance).to(dtype)
    starts = torch.tensor([0, keys // 2]) if padded else None
    got = row_mass(query, positions, key, block=block, scale=0.4, starts=starts, rows=3)
    expected = naive_row_mass(query, positions, key, block=block, scale=0.4, starts=starts)
    torch.testing.assert_close(got, expected, rtol=1e-4 if dtype == torch.float32 else 3e-2, atol=1e-2)
    assert got.dtype == torch.float32


def test_rows_of_a_block_average_to_the_mass_of_the_block() -> None:
    query, key = torch.randn(1, 4, 128, 16), torch.randn(1, 2, 128, 16)
    rows = row_mass(query, torch.arange(128), key, block=64)
    expected = naive_attention_mass(query, key, causal=True, block=64)
    torch.testing.assert_close(rows.unflatten(2, (2, 64)).mean(3), expected, rtol=1e-4, atol=1e-5)


def test_a_row_that_sees_nothing_gives_zeros() -> None:
    got = row_mass(
        torch.randn(1, 1, 1, 8), torch.tensor([3]), torch.randn(1, 1, 9, 8), block=4, starts=torch.tensor([5])
    )
    assert bool((got == 0).all())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("at_once", [1, 2**24])
def test_many_layers_at_once_are_what_each_is(monkeypatch: pytest.MonkeyPatch, padded: bool, at_once: int) -> None:
    monkeypatch.setattr(row_mass_module, "NUMBERS_AT_A_TIME", at_once)
    queries, starts = torch.randn(3, 2, 4, 16), torch.tensor([70, 0]) if padded else None
    keys = [torch.randn(2, 2, 150, 16) for _ in range(3)]
    found = row_mass_module.last_token_mass(queries, keys, block=64, starts=starts)
    for layer, key in enumerate(keys):
        wanted = naive_row_mass(queries[layer][:, :, None], torch.tensor([149]), key, block=64, starts=starts)
        torch.testing.assert_close(found[layer], wanted[:, :, 0].unflatten(1, (2, 2)).mean(2))
