"""Rounding with a Gram matrix against its definition, and against rounding to nearest on correlated inputs."""

from __future__ import annotations

import pytest
import torch

from inference_pio.formats.known import format_named
from inference_pio.kernels import int4
from inference_pio.kernels.gptq import Grid, gptq, inverse_of, naive_gptq

GRID = Grid(int4.fit_grid, int4.round_to_grid, int4.grid_values)


def correlated(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width // 4, width, generator=generator)
    few = torch.randn(rows, width // 4, generator=generator) @ mixing / width**0.5
    return (few + 0.1 * torch.randn(rows, width, generator=generator)) * torch.linspace(0.2, 3, width)


def weights(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("width", "group"), [(32, 32), (64, 32), (192, 64), (256, 128), (256, 256)])
def test_it_gives_the_codes_of_its_definition(width: int, group: int) -> None:
    x, weight = correlated(600, width), weights(24, width)
    gram = x.T @ x
    codes, grids = gptq(weight[None], gram[None], group, GRID, [600])
    want, want_grids = naive_gptq(weight, gram, group, GRID, [600])
    assert (codes[0] != want).float().mean() < 0.01  # a tie may fall to the other side
    assert (grids[0] != want_grids).float().mean() < 0.05
    assert grids.shape == (1, 24, width // group, 2)


@pytest.mark.parametrize("name", ["int4", "int8", "fp8"])
@pytest.mark.parametrize("width", [64, 192])
def test_products_with_such_inputs_change_less_than_by_rounding_to_nearest(name: str, width: int) -> None:
    kind, x, weight = format_named(name).linear, correlated(2000, width), weights(48, width)
    gram, asked = x.T @ x, weight.clone()
    codes, scale = kind.quantize_with_gram(weight[None], gram[None], [2000], 32)
    nearest = kind.dequantized(*kind.quantize(weight, 32), torch.float32)
    found = kind.dequantized(codes, scale, torch.float32)[0]
    assert [one.shape for one in kind.quantize(weight, 32)] == [codes[0].shape, scale[0].shape]
    assert [one.dtype for one in kind.quantize(weight, 32)] == [codes.dtype, scale.dtype]
    assert ((found - weight) @ x.T).square().sum() < 0.7 * ((nearest - weight) @ x.T).square().sum()
    assert torch.equal(weight, asked)
    assert torch.equal(gram, x.T @ x)


def test_matrices_are_rounded_one_by_one() -> None:
    grams = torch.stack([x.T @ x for x in (correlated(300, 64, 1), correlated(300, 64, 2))])
    weight = weights(2, 16, 64)
    codes, grids = gptq(weight, grams, 32, GRID, [300, 40])
    for one in range(2):
        alone = gptq(weight[one : one + 1], grams[one : one + 1], 32, GRID, [(300, 40)[one]])
        assert torch.equal(codes[one], alone[0][0])
        assert torch.equal(grids[one], alone[1][0])


def test_uncorrelated_inputs_and_inputs_never_seen_are_rounded_to_nearest() -> None:
    weight = weights(1, 16, 64)
    for gram in (torch.eye(64)[None], torch.zeros(1, 64, 64)):
        codes, grids = gptq(weight, gram, 32, GRID)
        groups = weight.unflatten(-1, (-1, 32))
        assert torch.equal(grids, int4.fit_grid(groups))
        assert torch.equal(codes, int4.round_to_grid(groups, grids).flatten(-2))


def test_few_rows_draw_the_gram_matrix_towards_its_diagonal() -> None:
    x = correlated(8, 64)
    gram = (x.T @ x).double()[None]
    few, many = inverse_of(gram, [8]), inverse_of(gram, [10**6])
    off = [(one - torch.diag_embed(one.diagonal(dim1=-2, dim2=-1))).norm() / one.norm() for one in (few, many)]
    assert off[0] < 0.5 * off[1]
    assert few.isfinite().all()


def test_dead_inputs_do_no_harm() -> None:
    x = correlated(500, 64)
    x[:, 7] = 0
    codes, grids = gptq(weights(1, 16, 64), (x.T @ x)[None], 32, GRID, [500])
    assert codes.isfinite().all()
    assert grids.isfinite().all()
