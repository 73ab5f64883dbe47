"""Which experts may stream apart, and what a plan says of them."""

from __future__ import annotations

import torch

from inference_pio.plan.skeleton import skeleton_of
from inference_pio.streaming.experts import Experts, slots_told
from tests import tiny
from tests.streaming.mixture import mixture


def test_a_model_and_its_skeleton_tell_the_same() -> None:
    model = mixture(layers=2)
    found = Experts.of(model)
    assert found == Experts.of(skeleton_of(model))
    assert found.counts == [16, 16]
    assert found.each == [(96 * 64 + 64 * 48) * 4] * 2
    assert found.nbytes == sum(one.nbytes for layer in model.model.layers for one in layer.mlp.experts.parameters())
    assert (found.chosen, found.lie_evenly) == (2, True)


def test_experts_of_odd_sizes_are_told() -> None:
    model = mixture(layers=1, dtype=torch.bfloat16)
    experts = model.model.layers[0].mlp.experts
    experts.down_proj = torch.nn.Parameter(torch.zeros(16, 3, 3, dtype=torch.bfloat16))
    assert not Experts.of(model).lie_evenly


def test_a_model_without_experts_has_none() -> None:
    assert Experts.of(tiny.build("llama")).found == {}


def test_a_plan_says_what_it_assumes() -> None:
    decision = {
        "experts": {"a": 8, "b": 8}, "slots_per_layer": 6, "host_bytes": 100, "memory_bytes": 90, "budget_bytes": 95,
        "expert_bytes": 1000, "chosen_per_token": 2,
    }  # fmt: skip
    where, cost = slots_told(decision)
    assert "6 of 8 have slots" in where
    assert "4.0 kB of experts" in cost
    assert "75% if all are chosen equally often, which is assumed, and then 1.0 kB" in cost
    assert len(slots_told({**decision, "chosen_per_token": None})) == 1
