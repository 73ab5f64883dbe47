"""What fired is counted by layer, on a device as well, and copied with the model."""

from __future__ import annotations

import copy

import torch

from inference_pio.spiking.tally import Tally


def test_parts_add_up_call_by_call_and_shares_stand_apart() -> None:
    tally = Tally()
    for _ in range(2):
        tally.add("a.q", activations=10, spikes=torch.tensor(5.0), accumulates=50, multiplies=100)
        tally.add("a.share", activations=1000, spikes=1, accumulates=4, multiplies=4000)
    told = tally.to_json()
    assert (told["activations"], told["spikes"], told["accumulates"], told["multiplies"]) == (2020, 12, 108, 8200)
    assert told["spikes_per_activation"] == round(12 / 2020, 4)
    assert told["spikes_per_activation_without_shares"] == 0.5
    assert told["spikes_per_activation_by_layer"] == {"a.q": 0.5, "a.share": 0.001}


def test_a_copy_counts_for_itself() -> None:
    tally = Tally()
    tally.add("a", activations=1)
    other = copy.deepcopy(tally)
    other.add("a", activations=1)
    assert (tally.total()["activations"], other.total()["activations"]) == (1, 2)
    tally.clear()
    assert tally.per_activation() is None
