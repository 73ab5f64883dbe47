"""A kernel in three parts lacks what it says, and nothing of the same size lacks less than its neighbours do."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.tucker import naive_product, tucker, tucker_numbers

SHAPES = [(8, 6, 3, 3), (5, 7, 3), (4, 4, 2, 1, 3), (6, 5, 1, 1)]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ranks", [(1, 1), (3, 2), (4, 4)])
def test_the_error_that_is_told_is_the_one_that_is_measured(shape: tuple[int, ...], ranks: tuple[int, int]) -> None:
    kernel = drawn(*shape)
    found = tucker(kernel, *ranks)
    measured = float((kernel - naive_product(found)).square().sum())
    assert found.error == pytest.approx(measured, rel=1e-6, abs=1e-9)
    assert torch.allclose(found.out_of.T @ found.out_of, torch.eye(ranks[0], dtype=torch.float64))
    assert torch.allclose(found.into @ found.into.T, torch.eye(ranks[1], dtype=torch.float64))
    parts = (found.out_of, found.core, found.into)
    assert sum(part.numel() for part in parts) == tucker_numbers(*shape[:2], kernel[0, 0].numel(), ranks)


def test_all_channels_lose_nothing_and_what_has_few_is_found() -> None:
    kernel = drawn(8, 6, 3, 3)
    assert tucker(kernel, 8, 6).error == pytest.approx(0, abs=1e-9)
    few = torch.einsum("or,rskl,si->oikl", drawn(8, 2), drawn(2, 3, 3, 3, seed=1), drawn(3, 6, seed=2))
    assert tucker(few, 2, 3).error == pytest.approx(0, abs=1e-6)


def test_it_lacks_less_than_leading_vectors_of_each_side_alone() -> None:
    for seed in range(5):
        kernel = drawn(8, 6, 3, 3, seed=seed)
        found = tucker(kernel, 3, 2)
        out_of = torch.linalg.svd(kernel.flatten(1))[0][:, :3]
        into = torch.linalg.svd(kernel.transpose(0, 1).flatten(1))[0][:, :2]
        core = torch.einsum("oikl,or,is->rskl", kernel, out_of, into)
        assert found.error < 0.999 * float(kernel.square().sum() - core.square().sum())
