"""The twin answers as the model does, and is not to be had of a model without spikes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inference_pio.errors import InvalidModel
from inference_pio.kernels.spikes import Code
from inference_pio.spiking.linear import SpikingLinear
from inference_pio.spiking.twin import QuantizedTwin


def test_it_answers_as_its_model_and_counts_nothing() -> None:
    layer = SpikingLinear(nn.Linear(6, 4), torch.full((6,), 0.1, dtype=torch.float64), Code("radix", 15))
    x = torch.randn(3, 6)
    twin = QuantizedTwin(nn.Sequential(layer))(x)
    assert layer.tally.layers == {}
    assert torch.equal(twin, layer(x))


def test_a_model_without_spikes_has_none() -> None:
    with pytest.raises(InvalidModel, match="apply snn_conversion"):
        QuantizedTwin(nn.Linear(2, 2))
