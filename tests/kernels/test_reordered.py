"""Columns in another order are those of their definition, with and without a norm before them."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.reordered import naive_reordered, reordered


def drawn(rows: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(width)
    x, weight = torch.randn(rows, width, generator=chance), torch.randn(width, generator=chance)
    return x.to(dtype), torch.randperm(width, generator=chance).to(torch.int32), weight.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 64), (3, 7), (2, 1), (0, 8)])
def test_it_is_its_definition(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, order, weight = drawn(*shape, dtype)
    assert torch.equal(reordered(x, order), naive_reordered(x, order))
    torch.testing.assert_close(reordered(x, order, weight, 1e-6), naive_reordered(x, order, weight, 1e-6))
