"""Spiking linear layers: what their spikes add up to, and what they count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from inference_pio.errors import InvalidModel
from inference_pio.kernels.spikes import Code, counts, potentials, spikes_in
from inference_pio.spiking.linear import SpikingLinear
from inference_pio.spiking.module import from_counts_at_once

CODES = [Code("radix", 15, second=True), Code("radix", 7), Code("rate", 3)]


def made(kind: str, inputs: int, outputs: int, bias: bool = True) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Conv1D(outputs, inputs) if kind == "conv1d" else nn.Linear(inputs, outputs, bias=bias)


@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (33, 7), (64, 48)])
def test_it_computes_with_rounded_inputs(kind: str, inputs: int, outputs: int, code: Code) -> None:
    original = made(kind, inputs, outputs)
    threshold = torch.rand(inputs, dtype=torch.float64) * 0.2 + 0.05
    layer = SpikingLinear(original, threshold, code)
    x = torch.randn(2, 3, inputs)
    rounded = counts(potentials(x, threshold, code)) * threshold
    weight = original.weight if kind == "linear" else original.weight.t()
    wanted = F.linear(rounded, weight.double(), original.bias.double())
    assert (layer(x) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    with from_counts_at_once():
        assert torch.equal(layer(x), layer(x))
        at_once = layer(x)
    assert torch.equal(layer(x), at_once)
    assert (layer.in_features, layer.out_features, layer.bias) == (inputs, outputs, original.bias)


def test_it_counts_values_spikes_and_additions() -> None:
    code, threshold = CODES[0], torch.full((5,), 0.3, dtype=torch.float64)
    layer = SpikingLinear(made("linear", 5, 7, bias=False), threshold, code)
    x = torch.randn(2, 3, 5)
    layer(x)
    fired = int(spikes_in(counts(potentials(x, threshold, code)), code).sum())
    told = layer.tally.layers[layer.path]
    assert {part: int(number) for part, number in told.items()} == {
        "activations": 30, "spikes": fired, "accumulates": 7 * fired, "multiplies": 210,
        "neuron_steps": 30 * 4 * 2, "results": 42,
    }  # fmt: skip


def test_a_plans_layer_has_the_shapes_and_others_are_refused() -> None:
    original, code = made("linear", 6, 4), CODES[0]
    shaped = SpikingLinear.shaped(original.to("meta"), code)
    real = SpikingLinear(made("linear", 6, 4), torch.ones(6, dtype=torch.float64), code)
    assert {name: (one.shape, one.dtype) for name, one in shaped.state_dict().items()} == {
        name: (one.shape, one.dtype) for name, one in real.state_dict().items()
    }
    with pytest.raises(InvalidModel, match="Conv2d has no spiking form"):
        SpikingLinear(nn.Conv2d(1, 1, 1), torch.ones(1), code)
