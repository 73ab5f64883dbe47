"""int4 on grids without a middle: what fits stays, what does not is rounded to the nearest, and the loss is told."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inference_pio.kernels.int4 import dequantize_groups, pack_codes, quantize_groups
from inference_pio.kernels.whole_grid import WholeGrid, fit_whole_grid, naive_whole_codes, whole_values

GRIDS = [WholeGrid(4), WholeGrid(4, zeros=True), WholeGrid(8)]


def some_weights(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 0.05 + 0.01


@pytest.mark.parametrize("shape", [(7, 64), (3, 5, 96), (1, 128)])
@pytest.mark.parametrize("grid", GRIDS)
def test_codes_are_the_nearest_of_the_steps_found_and_the_loss_is_theirs(
    grid: WholeGrid, shape: tuple[int, ...]
) -> None:
    packed, scale = quantize_groups(some_weights(*shape), 32)
    made = fit_whole_grid(packed, scale, grid)
    before = dequantize_groups(packed, scale, torch.float32)
    groups, held = before.reshape(-1, 32), made.codes.reshape(-1, 32)
    for row, step, zero, codes in zip(groups, made.step.flatten(), made.zero.flatten(), held, strict=True):
        naive = naive_whole_codes(row, float(step), int(zero), grid)
        apart = [abs(one - other) for one, other in zip(naive, codes.tolist(), strict=True)]
        assert sum(apart) <= 1  # a half between two codes may go both ways
    after = whole_values(made.codes.unflatten(-1, (-1, 32)), made.step, made.zero).flatten(-2)
    assert made.squared_error == pytest.approx(float((after - before).square().sum()), rel=1e-4)
    assert made.squares == pytest.approx(float(before.square().sum()), rel=1e-4)
    assert (made.codes.shape, made.step.dtype, made.zero.dtype) == (shape, torch.bfloat16, torch.int8)


@pytest.mark.parametrize(("grid", "most"), [*zip(GRIDS, (0.09, 0.08, 0.004), strict=True)])
def test_eight_bits_keep_the_weights_and_four_move_them(grid: WholeGrid, most: float) -> None:
    made = fit_whole_grid(*quantize_groups(some_weights(64, 256), 64), grid)
    assert most / 4 < (made.squared_error / made.squares) ** 0.5 < most


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("zero", [0, 3])
def test_weights_that_the_grid_can_hold_stay_what_they_are(grid: WholeGrid, zero: int) -> None:
    codes = torch.randint(0, 16, (6, 64), generator=torch.Generator().manual_seed(0))
    step = torch.tensor([0.5, 0.25, 1.5]).repeat(2)
    scale = torch.stack([step, -zero * step], -1).bfloat16().expand(2, 6, 2).contiguous()
    made = fit_whole_grid(pack_codes(codes), scale, grid)
    if zero and grid == WholeGrid(4):
        assert made.squared_error > 0
    else:
        assert made.squared_error == 0


def test_groups_of_nothing_and_of_one_value_are_held() -> None:
    weights = torch.cat([torch.zeros(1, 64), torch.full((1, 64), 0.5), torch.full((1, 64), -0.5)])
    packed, scale = quantize_groups(weights, 32)
    for grid in GRIDS:
        made = fit_whole_grid(packed, scale, grid)
        after = whole_values(made.codes.unflatten(-1, (-1, 32)), made.step, made.zero).flatten(-2)
        torch.testing.assert_close(after, weights, rtol=4e-3, atol=0)
