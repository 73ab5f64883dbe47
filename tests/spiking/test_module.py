"""What all spiking modules keep to: thresholds of full precision, no foreign weights, no gradients in silence."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from inference_pio.errors import InvalidSetting, RefusedOnOptimized
from inference_pio.kernels.spikes import Code
from inference_pio.spiking.linear import SpikingLinear
from inference_pio.spiking.module import at_once, from_counts_at_once, without_gradient
from inference_pio.spiking.tally import Tally

CODE = Code("radix", 15, second=True)


def layer() -> SpikingLinear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SpikingLinear(nn.Linear(6, 4), torch.rand(6, dtype=torch.float64) + 0.1, CODE)


def test_casts_leave_thresholds_and_weights_as_they_are() -> None:
    one, other = layer(), layer().half()
    assert other.bias.dtype is torch.float16
    assert torch.equal(one.threshold, other.threshold)
    assert torch.equal(one.whole, other.whole)


def test_original_weights_are_refused_and_not_to_be_had() -> None:
    one = layer()
    with pytest.raises(RefusedOnOptimized, match="cannot take original weights"):
        one.load_state_dict(nn.Linear(6, 4).state_dict())
    with pytest.raises(AttributeError, match="SpikingLinear has no 'weight'"):
        one.weight
    again = layer()
    again.load_state_dict(one.state_dict())


def test_counts_at_once_end_with_the_block_and_are_not_tallied() -> None:
    one, x = layer().tell("here", tally := Tally()), torch.ones(2, 6)
    with from_counts_at_once():
        assert at_once()
        counted = one(x)
    assert not at_once()
    with pytest.raises(InvalidSetting), from_counts_at_once():
        one(x[:, :3])
    assert not at_once()
    assert tally.layers == {}
    assert torch.equal(one(x), counted)
    assert set(tally.layers) == {"here"}


def test_a_copied_model_shares_one_tally_of_its_own() -> None:
    tally = Tally()
    model = nn.Sequential(layer().tell("0", tally), nn.Flatten(), layer().tell("2", tally))
    other = copy.deepcopy(model)
    assert other[0].tally is other[2].tally is not tally


def test_backward_is_refused_only_where_it_is_asked_for() -> None:
    x = torch.ones(2, 6, requires_grad=True)
    made = without_gradient(torch.ones(2), x)
    with pytest.raises(RefusedOnOptimized, match="spikes have no gradient"):
        made.sum().backward()
    with torch.no_grad():
        assert not without_gradient(torch.ones(2), x).requires_grad
