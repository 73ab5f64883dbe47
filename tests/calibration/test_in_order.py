"""Rows are added in their order, and nothing else is changed."""

from __future__ import annotations

import pytest
import torch

from inference_pio.calibration.in_order import in_order
from inference_pio.compat import row_puts

ROWS, WIDTH, TIMES = 512, 64, 8


def gradient(index: torch.Tensor, *, inputs: torch.Tensor, counts: torch.Tensor, ordered: bool) -> torch.Tensor:
    loss = (inputs[index] * counts).sum()
    if not ordered:
        return torch.autograd.grad(loss, inputs)[0]
    with in_order():
        return torch.autograd.grad(loss, inputs)[0]


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    inputs = torch.randn(ROWS, WIDTH, generator=chance, requires_grad=True)
    index = torch.randint(-ROWS, ROWS, (TIMES * ROWS,), generator=chance)
    return index, inputs, torch.randn(len(index), WIDTH, generator=chance)


def test_gradients_of_rows_are_the_same_each_time_and_right() -> None:
    index, inputs, counts = problem()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = [gradient(index, inputs=inputs, counts=counts, ordered=True) for _ in range(8)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], one) for one in found)
    wanted = torch.zeros(ROWS, WIDTH, dtype=torch.float64)
    for place, row in zip(index.tolist(), counts.double(), strict=True):
        wanted[place] += row
    torch.testing.assert_close(found[0].double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "index",
    [
        (torch.tensor([True, False, True, False]),), (torch.tensor([[0, 1], [1, 1]]),),
        (torch.tensor([0, 1, 1]), torch.tensor([2, 0, 0])), (slice(None), torch.tensor([1, 1, 0])),
    ],
    ids=["mask", "of two dimensions", "two", "of columns"],
)  # fmt: skip
def test_every_other_index_is_left_as_it_is(index: tuple[torch.Tensor, ...]) -> None:
    inputs = torch.arange(12.0).view(4, 3).requires_grad_()
    wanted = torch.autograd.grad(inputs[index].square().sum(), inputs)[0]
    with in_order():
        found = torch.autograd.grad(inputs[index].square().sum(), inputs)[0]
    assert torch.equal(found, wanted)


def test_what_is_put_and_not_added_is_put() -> None:
    with in_order():
        found = torch.zeros(3, 2)
        found[torch.tensor([1, 1])] = torch.ones(2, 2)
    assert found.tolist() == [[0, 0], [1, 1], [0, 0]]


def test_torch_has_the_operations_by_these_names() -> None:
    assert len(row_puts()) == 3
