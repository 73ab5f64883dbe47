"""Sums in an order that is written down: neighbours by neighbours, products one after another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from inference_pio.compat import has_triton

pytestmark = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


def by_neighbours(numbers: torch.Tensor) -> torch.Tensor:
    """The sum of each row, from the definition."""
    while numbers.shape[-1] > 1:
        numbers = numbers[..., ::2] + numbers[..., 1::2]
    return numbers[..., 0]


def far_apart(*shape: int, device: str = "cpu") -> torch.Tensor:
    """Numbers whose sum tells in which order they were added."""
    chance = torch.Generator().manual_seed(sum(shape))
    sizes = torch.exp2(torch.randint(-12, 13, shape, generator=chance).float())
    return (torch.randn(shape, generator=chance) * sizes).to(device)


def check_neighbours(device: str = "cpu") -> None:
    from tests.kernels.triton.ordered import neighbours_kernel

    for count, warps in ((1, 1), (2, 1), (64, 1), (256, 1), (256, 4), (512, 8)):
        given = far_apart(3, count, device=device)
        out = torch.empty(3, device=device)
        neighbours_kernel[(3,)](given, out, COUNT=count, num_warps=warps)
        assert torch.equal(out, by_neighbours(given)), (count, warps)
        assert count < 64 or not torch.equal(out, by_neighbours(given.flip(-1).roll(1, -1)))


def check_products(device: str = "cpu") -> None:
    from tests.kernels.triton.ordered import products_kernel

    for together in (1, 2, 4):
        ones, others = (far_apart(8, 4 * together + extra, device=device)[:, : 4 * together] for extra in (0, 1))
        ones, others = (each.contiguous().bfloat16().float() for each in (ones, others))
        out = torch.empty(8, 4, device=device)
        products_kernel[(8,)](ones, others, out, TOGETHER=together, num_warps=1)
        wanted = torch.zeros(8, 4, dtype=torch.float64, device=device)
        products = (ones.double() * others.double()).view(8, 4, together)
        for place in range(together):  # products of bfloat16 are exact in float32: a fused one rounds as another does
            wanted = (wanted + products[..., place]).float().double()
        assert torch.equal(out, wanted.float()), together


def test_two_numbers_have_one_sum_and_so_have_all(interpreted: Callable[..., None]) -> None:
    interpreted(check_neighbours)


def test_products_are_added_one_after_another(interpreted: Callable[..., None]) -> None:
    interpreted(check_products)


@pytest.mark.gpu
def test_gpu_sums_have_their_order_however_many_warps_make_them() -> None:
    check_neighbours("cuda")
    check_products("cuda")
