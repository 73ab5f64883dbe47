"""Two factors lose what their definition says, the least that can be, and pivoting changes their size alone."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels import low_rank
from inference_pio.kernels.low_rank import naive_truncation, pivoted, refitted_factor, shrunk, spectrum

SHAPES = [(7, 12), (12, 7), (9, 9), (1, 5), (5, 1)]


def chance(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uneven(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    """Rows with channels that depend on one another and differ in size a hundredfold."""
    return chance(rows, width, seed=seed) @ chance(width, width, seed=seed + 1) * torch.logspace(-1, 1, width).double()


def mean_of(rows: torch.Tensor) -> torch.Tensor:
    return rows.T @ rows / len(rows)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_the_loss_that_is_predicted_is_the_one_that_is_measured(shape: tuple[int, int], share: float) -> None:
    x, weight = uneven(400, shape[1]), chance(*shape, seed=5)
    rank = max(1, round(share * min(shape)))
    found = spectrum(weight, mean_of(x))
    left, right = found.factors(rank)
    measured = (x @ (weight - left @ right).T).square().sum(1).mean()
    everything = (x @ weight.T).square().sum(1).mean()
    assert abs(found.error(rank) - measured) <= 1e-6 * max(measured, 1e-9 * everything)


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_are_those_of_the_definition(shape: tuple[int, int]) -> None:
    inputs, outputs = mean_of(uneven(400, shape[1])), mean_of(uneven(300, shape[0], seed=3))
    weight, rank = chance(*shape, seed=5), max(1, min(shape) // 2)
    wanted, loss = naive_truncation(weight, inputs, outputs, rank)
    found = spectrum(weight, inputs, outputs)
    left, right = found.factors(rank)
    torch.testing.assert_close(left @ right, wanted, rtol=1e-6, atol=1e-8)
    assert found.error(rank) == pytest.approx(loss, rel=1e-6, abs=1e-12)


def test_outputs_that_are_told_by_their_diagonal_are_those_of_a_diagonal_matrix() -> None:
    weight, diagonal = chance(6, 9), torch.linspace(0.1, 4, 6).double()
    alone, whole = (spectrum(weight, mean_of(uneven(99, 9)), given) for given in (diagonal, torch.diag(diagonal)))
    torch.testing.assert_close(alone.values, whole.values)
    torch.testing.assert_close(alone.left.abs(), whole.left.abs())


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_for_these_inputs_it_loses_less_than_plain_svd(shape: tuple[int, int]) -> None:
    x, weight = uneven(400, shape[1]), chance(*shape, seed=5)
    for rank in range(1, min(shape)):
        losses = []
        for found in (spectrum(weight, mean_of(x)), spectrum(weight)):
            left, right = found.factors(rank)
            losses.append(float((x @ (weight - left @ right).T).square().sum()))
        assert losses[0] < losses[1]


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (9, 9)])
def test_pivoting_is_exact_and_bounded(shape: tuple[int, int]) -> None:
    found = spectrum(chance(*shape), mean_of(uneven(400, shape[1])))
    for rank in range(1, min(shape) + 1):
        left, right = found.factors(rank)
        order, columns, rest = pivoted(left, right)
        assert order.sort().values.tolist() == list(range(shape[1]))
        assert (columns.shape, rest.shape) == ((shape[0], rank), (rank, shape[1] - rank))
        torch.testing.assert_close(torch.cat([columns, columns @ rest], 1), (left @ right)[:, order])
        assert rest.numel() == 0 or float(rest.abs().max()) < 8


def test_few_inputs_leave_nothing_that_cannot_be_inverted() -> None:
    x, weight = uneven(3, 12), chance(5, 12)
    found = spectrum(weight, shrunk(mean_of(x), 3))
    left, right = found.factors(5)
    torch.testing.assert_close(left @ right, weight, rtol=1e-6, atol=1e-8)
    drawn, sure = (shrunk(mean_of(uneven(400, 12)), rows) - mean_of(uneven(400, 12)) for rows in (20, 20000))
    assert drawn.abs().max() > 50 * sure.abs().max()
    assert torch.equal(shrunk(torch.zeros(3, 3), 0), torch.zeros(3, 3, dtype=torch.float64))


@pytest.mark.parametrize("inputs", [torch.zeros(4, 4), torch.ones(4, 4), torch.diag(torch.tensor([1.0, 1, 0, -1e-9]))])
def test_what_has_no_root_is_taken_for_the_nearest_that_has(inputs: torch.Tensor) -> None:
    left, right = spectrum(chance(3, 4), inputs).factors(2)
    assert left.isfinite().all()
    assert right.isfinite().all()


def test_full_rank_loses_nothing_in_float32() -> None:
    weight = chance(20, 30).float()
    order, columns, rest = pivoted(*spectrum(weight, mean_of(uneven(500, 30))).factors(20))
    made = torch.empty(20, 30)
    made[:, order] = torch.cat([columns.float(), columns.float() @ rest.float()], 1)
    torch.testing.assert_close(made, weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [*SHAPES, (40, 6)])
def test_singular_values_by_products_are_those_of_torch(shape: tuple[int, int]) -> None:
    weight = chance(*shape) * torch.logspace(-3, 1, shape[1]).double()
    left, values, right = low_rank._parts_by_products(weight)
    torch.testing.assert_close(values, torch.linalg.svdvals(weight), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close((left * values) @ right, weight, rtol=1e-9, atol=1e-9)
    few = low_rank._parts_by_products(torch.outer(weight[:, 0], weight[0]))
    assert all(part.isfinite().all() for part in few)


@pytest.mark.parametrize("units", [1e-20, 1e-8, 1e8])
def test_factors_are_equal_in_size_whatever_units_were_weighed_in(units: float) -> None:
    weight = chance(20, 30)
    left, right = spectrum(weight, mean_of(uneven(500, 30)), units * mean_of(uneven(500, 20))).factors(20)
    assert float(left.norm() / right.norm()) == pytest.approx(1, rel=1e-9)
    torch.testing.assert_close(left @ right, weight, rtol=1e-6, atol=1e-8)
    left, right = spectrum(torch.zeros(5, 4)).factors(2)
    assert torch.equal(left @ right, torch.zeros(5, 4, dtype=torch.float64))


def test_a_factor_that_is_given_nothing_stays_what_it_was() -> None:
    factor = chance(5, 3)
    assert torch.equal(refitted_factor(factor, torch.zeros(5, 3), torch.zeros(3, 3), rows=10), factor)
