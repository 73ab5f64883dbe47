"""Spiking convolutions, grouped, strided and padded ones too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inference_pio.kernels.spikes import Code, counts, potentials
from inference_pio.spiking.conv import SpikingConv2d
from inference_pio.spiking.module import from_counts_at_once


@pytest.mark.parametrize("code", [Code("radix", 15, second=True), Code("rate", 5)], ids=str)
@pytest.mark.parametrize(
    "how", [{}, {"padding": 1}, {"stride": 2, "bias": False}, {"groups": 2}, {"padding": 2, "dilation": 2}], ids=str
)
def test_it_computes_with_rounded_inputs(how: dict[str, Any], code: Code) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv, x = nn.Conv2d(4, 6, (3, 2), **how), torch.randn(2, 4, 7, 6)
    threshold = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    layer = SpikingConv2d(conv, threshold, code)
    rounded = counts(potentials(x, threshold[:, None, None], code)) * threshold[:, None, None]
    bias = None if conv.bias is None else conv.bias.double()
    wanted = F.conv2d(rounded, conv.weight.double(), bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    assert (layer(x) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    with from_counts_at_once():
        at_once = layer(x)
    assert torch.equal(layer(x), at_once)
    told = layer.tally.layers[layer.path]
    assert told["multiplies"] == 2 * wanted.numel() * conv.weight[0].numel()
    assert 0 < told["accumulates"] < told["multiplies"] * 2 * code.steps


def test_a_plans_layer_has_the_shapes() -> None:
    code = Code("radix", 15)
    shaped = SpikingConv2d.shaped(nn.Conv2d(4, 6, 3, device="meta"), code)
    real = SpikingConv2d(nn.Conv2d(4, 6, 3), torch.ones(4, dtype=torch.float64), code)
    assert {name: (one.shape, one.dtype) for name, one in shaped.state_dict().items()} == {
        name: (one.shape, one.dtype) for name, one in real.state_dict().items()
    }
