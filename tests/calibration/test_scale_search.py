"""Scales lessen what rounding changes where channels are uneven, and nothing is scaled where they are not."""

from __future__ import annotations

import pytest
import torch

from inference_pio.calibration.scale_search import MOST_POWERS, Reader, search_scales
from inference_pio.formats.known import format_named


def rounded(rows: torch.Tensor) -> torch.Tensor:
    kind = format_named("int4").linear
    return kind.dequantized(*kind.quantize(rows, 64), torch.float32)


def uneven(matrices: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights that are small where inputs are large, as those behind a norm with a few large channels are."""
    chance = torch.Generator().manual_seed(seed)
    sizes = torch.exp2(torch.randint(-2, 3, (matrices, 1, 64), generator=chance).float())
    x = torch.randn(matrices, 500, 64, generator=chance) * sizes
    return torch.randn(matrices, 24, 64, generator=chance) / sizes, x


def reader(weight: torch.Tensor, x: torch.Tensor) -> Reader:
    return Reader(weight, (x.transpose(-2, -1) @ x).double(), rounded)


def change(weight: torch.Tensor, x: torch.Tensor, scales: torch.Tensor) -> float:
    """What rounding changes in the products, from the definition."""
    total = 0.0
    for matrix, given, one in zip(weight, x, scales.float().expand(len(weight), -1), strict=True):
        total += float((given @ (rounded(matrix * one) / one - matrix).T).double().square().sum())
    return total


@pytest.mark.parametrize("whole", [True, False])
def test_uneven_channels_are_evened_out(whole: bool) -> None:
    weight, x = uneven()
    found = search_scales([reader(weight, x)], whole=whole)
    before, after = change(weight, x, torch.ones(1, 64)), change(weight, x, found.scales[None])
    assert after < 0.5 * before
    assert after / before == pytest.approx(found.loss, rel=1e-3)
    assert (found.scales.log2() == found.scales.log2().round()).all() == whole
    assert found.scales.log2().abs().max() <= MOST_POWERS
    assert found.alpha > 0


def test_even_channels_are_left_as_they_are_but_for_what_helps() -> None:
    weight, x = torch.randn(1, 24, 64), torch.randn(1, 500, 64)
    found = search_scales([reader(weight, x)], whole=True)
    assert found.loss <= 1.0
    assert change(weight, x, found.scales[None]) <= change(weight, x, torch.ones(1, 64)) * 1.0001


def test_matrices_with_channels_of_their_own_get_scales_of_their_own() -> None:
    weight, x = uneven(3)
    found = search_scales([reader(weight, x)], own=True)
    assert found.scales.shape == (3, 64)
    assert not torch.equal(found.scales[0], found.scales[1])
    assert change(weight, x, found.scales) < 0.5 * change(weight, x, torch.ones(3, 64))
    together = search_scales([reader(weight, x)])
    assert together.scales.shape == (64,)
    assert change(weight, x, together.scales[None]) > change(weight, x, found.scales)


def test_what_must_be_alike_is() -> None:
    def alike(powers: torch.Tensor) -> torch.Tensor:
        return powers.view(2, 32).mean(0).repeat(2)

    weight, x = uneven()
    found = search_scales([reader(weight, x)], alike=alike)
    assert torch.equal(found.scales[:32], found.scales[32:])


def test_channels_that_nothing_comes_through_do_no_harm() -> None:
    weight, x = uneven()
    x[..., :3], weight[..., 5:7] = 0.0, 0.0
    found = search_scales([reader(weight, x)])
    assert found.scales.isfinite().all()
    assert found.loss < 0.6
