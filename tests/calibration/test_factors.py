"""Layers made of factors compute what the factors say, in the places and with the biases of those that they replace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inference_pio.anatomy.side_by_side import side_by_side
from inference_pio.calibration.factors import factors_at, factors_to_come, layers_of
from inference_pio.calibration.ranks import WHOLE
from inference_pio.kernels.low_rank import spectrum


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(12, 4), nn.Linear(12, 3, bias=False), nn.Linear(12, 3)
        self.o_proj = nn.Linear(8, 4)


PATHS = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.mark.parametrize("pivots", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_full_rank_layers_are_what_they_were(pivots: bool, dtype: torch.dtype) -> None:
    model = Block().to(dtype)
    groups = side_by_side(model, PATHS)
    factors = {
        one.name: factors_at(spectrum(one.weight(model)), sum(one.outputs), pivots, one.weight(model)) for one in groups
    }
    made = layers_of(model, groups, factors)
    assert set(made) == set(PATHS)
    assert made["q_proj"].into is made["k_proj"].into is made["v_proj"].into is not made["o_proj"].into
    assert made["q_proj"].into.readers == 3
    for path, layer in made.items():
        own = model.get_submodule(path)
        x = torch.randn(5, own.in_features, dtype=dtype)
        assert layer.out_of.bias is own.bias
        assert layer.out_of.weight.dtype is dtype
        near = 1e-5 if dtype is torch.float32 else 4e-2
        torch.testing.assert_close(layer(x), own(x), rtol=near, atol=near)


def test_what_is_to_come_has_the_shapes_of_what_comes_and_the_whole_stays() -> None:
    model = Block().requires_grad_(False)
    groups = side_by_side(model, PATHS)
    ranks = {"q_proj": 4, "o_proj": WHOLE}
    for pivots in (True, False):
        (to_come,) = factors_to_come(model, groups, ranks, pivots).values()
        weight = groups[0].weight(model)
        made = factors_at(spectrum(weight), 4, pivots, weight)
        for name in ("into", "out_of", "order"):
            one, other = getattr(to_come, name), getattr(made, name)
            assert (one is None) == (other is None)
            assert one is None or (one.shape, one.dtype) == (other.shape, other.dtype)
        layers = layers_of(model, groups, {"q_proj": to_come})
        assert set(layers) == {"q_proj", "k_proj", "v_proj"}
        assert not any(parameter.requires_grad for layer in layers.values() for parameter in layer.parameters())
