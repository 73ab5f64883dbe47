"""The fit by sums is that of least squares over all rows, and damping holds it where rows are few."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.linear_fit import LinearFit, added_map, naive_added_map, naive_linear_fit


@pytest.mark.parametrize(("rows", "inner", "outer"), [(40, 3, 5), (7, 6, 1), (129, 17, 17)])
@pytest.mark.parametrize("parts", [1, 3])
def test_it_is_least_squares(rows: int, inner: int, outer: int, parts: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, inner, generator=generator).double() + 0.5
    y = torch.randn(rows, outer, generator=generator).double()
    fit = LinearFit()
    for some, others in zip(x.chunk(parts), y.chunk(parts), strict=True):
        fit.add(some, others)
    for found, wanted in zip(fit.solve(damping=0), naive_linear_fit(x, y), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-8)


def test_few_rows_give_small_weights_and_the_mean() -> None:
    x, y = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)), torch.full((3, 2), 4.0)
    fit = LinearFit()
    fit.add(x, y)
    weight, bias = fit.solve()
    torch.testing.assert_close(x.double() @ weight.T + bias, y.double(), rtol=1e-6, atol=1e-6)
    assert float(weight.abs().max()) < 1e-6


@pytest.mark.parametrize(("rows", "inner", "outer"), [(40, 3, 5), (4, 6, 1), (129, 17, 9)])
def test_what_is_added_is_damped_least_squares(rows: int, inner: int, outer: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, missing = torch.randn(rows, inner, generator=generator), torch.randn(rows, outer, generator=generator)
    torch.testing.assert_close(added_map(x, missing), naive_added_map(x, missing), rtol=1e-7, atol=1e-9)
    assert not added_map(torch.zeros_like(x), missing).any()
