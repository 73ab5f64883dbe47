"""Channels go in the order of their definition, and what stays makes up for them as well as anything could."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.channel_removal import (
    DAMPING,
    block_order,
    damped,
    naive_block_order,
    naive_removal_order,
    naive_weighed,
    refitted,
    removal_order,
    weighed,
)


def inputs(batch: int, width: int, rows: int = 400, seed: int = 0) -> torch.Tensor:
    """Rows [batch, rows, width] with channels that depend on one another and differ in size."""
    chance = torch.Generator().manual_seed(seed)
    mixed = torch.randn(batch, rows, width, generator=chance) @ torch.randn(batch, width, width, generator=chance)
    return mixed * torch.logspace(-1, 1, width)


def problem(batch: int = 2, out: int = 5, width: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x = inputs(batch, width, seed=seed)
    weight = torch.randn(batch, out, width, generator=torch.Generator().manual_seed(seed + 1))
    return weight, x.mT.double() @ x.double()


@pytest.mark.parametrize("seed", range(4))
def test_the_order_and_the_losses_are_their_definition(seed: int) -> None:
    weight, gram = problem(seed=seed)
    order, losses = removal_order(weight, gram)
    for copy in range(len(weight)):
        wanted, wanted_losses = naive_removal_order(weight[copy], gram[copy])
        assert order[copy].tolist() == wanted.tolist()
        torch.testing.assert_close(losses[copy], wanted_losses, rtol=1e-5, atol=1e-6 * wanted_losses.sum().item())


@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_blocks_go_in_the_order_of_their_definition(block: int) -> None:
    weight, gram = problem(seed=block)
    order, losses = block_order(weight, gram, block)
    for copy in range(len(weight)):
        wanted, wanted_losses = naive_block_order(weight[copy], gram[copy], block)
        assert order[copy].tolist() == wanted.tolist()
        torch.testing.assert_close(losses[copy], wanted_losses, rtol=1e-5, atol=1e-6 * wanted_losses.sum().item())


def test_channels_of_one_round_go_together_and_each_goes_once() -> None:
    weight, gram = problem(width=30)
    alone, together = removal_order(weight, gram), removal_order(weight, gram, steps=4)
    for order, losses in (alone, together):
        assert order.sort(1).values.tolist() == [list(range(30))] * 2
        assert (losses >= 0).all()
    torch.testing.assert_close(alone[1].sum(1), together[1].sum(1), rtol=0.2, atol=0)
    assert alone[0][:, :3].tolist() != together[0][:, -3:].tolist()


def test_of_two_equal_channels_one_is_enough() -> None:
    x = torch.randn(1, 400, 6, generator=torch.Generator().manual_seed(0))
    x[..., 3] = x[..., 1]
    order, losses = removal_order(torch.ones(1, 2, 6), x.mT @ x)
    assert int(order[0, 0]) in (1, 3)
    assert losses[0, 0] < 1e-2 * losses[0].sum()
    assert not {1, 3} <= set(order[0, :2].tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_refitted_weights_are_the_least_squares_of_torch(dtype: torch.dtype) -> None:
    weight, gram = problem(batch=2, out=4, width=10)
    kept = torch.tensor([[0, 2, 3, 7, 9], [1, 2, 4, 5, 8]])
    found = refitted(weight.to(dtype), gram, kept)
    assert (found.dtype, found.shape) == (dtype, (2, 4, 5))
    for copy in range(2):
        x = inputs(2, 10)[copy].double()
        ridge = (DAMPING * gram[copy][kept[copy]][:, kept[copy]].diagonal().mean()).sqrt() * torch.eye(5).double()
        left = torch.cat([x[:, kept[copy]], ridge])
        right = torch.cat([x @ weight[copy].to(dtype).double().T, torch.zeros(5, 4, dtype=torch.float64)])
        wanted = torch.linalg.lstsq(left, right).solution.T
        torch.testing.assert_close(
            found[copy].double(), wanted, rtol=1e-2 if dtype is torch.bfloat16 else 1e-4, atol=1e-4
        )


def test_refitting_loses_less_than_leaving_weights_as_they_are() -> None:
    weight, gram = problem(width=16)
    order, _ = removal_order(weight, gram)
    kept = order[:, 6:].sort(1).values
    x = inputs(2, 16)
    chosen = x.gather(2, kept[:, None].expand(-1, x.shape[1], -1))
    as_they_are = weight.gather(2, kept[:, None].expand(-1, 5, -1))
    wanted = x @ weight.mT
    errors = [(wanted - chosen @ part.mT).square().sum() for part in (refitted(weight, gram, kept), as_they_are)]
    assert errors[0] < 0.5 * errors[1]


def test_nothing_seen_can_be_inverted() -> None:
    assert torch.linalg.cholesky(damped(torch.zeros(2, 3, 3))).isfinite().all()


@pytest.mark.parametrize("seed", range(3))
def test_weighed_outputs_have_the_products_of_their_definition_and_lead_to_its_order(seed: int) -> None:
    weight, gram = problem(seed=seed)
    gradients = inputs(1, weight.shape[1], rows=50, seed=seed + 7)[0].double()
    outputs = gradients.T @ gradients
    found = weighed(weight, outputs)
    for copy in range(len(weight)):
        wanted = naive_weighed(weight[copy], outputs)
        torch.testing.assert_close(found[copy].T @ found[copy], wanted.T @ wanted)
        assert removal_order(found, gram)[0][copy].tolist() == naive_removal_order(wanted, gram[copy])[0].tolist()
    alone = weighed(weight, outputs.diagonal())
    torch.testing.assert_close(alone, weighed(weight, outputs.diagonal().diag()))
    assert removal_order(found, gram)[0].tolist() != removal_order(weight, gram)[0].tolist()
