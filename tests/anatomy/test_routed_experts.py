"""Experts are cut out whole, with the router's rows and corrections; mixtures of other kinds are told apart."""

from __future__ import annotations

import copy

import pytest
import torch

from inference_pio.anatomy.routed_experts import RoutedExperts, routed_experts
from tests import tiny


@pytest.mark.parametrize(("name", "count"), [("qwen3_moe", 8), ("glm4_moe", 8), ("glm4_moe_lite", 4)])
def test_mixtures_are_found_with_their_router(name: str, count: int) -> None:
    model = tiny.build(name)
    (one,) = routed_experts(model)
    assert isinstance(one, RoutedExperts)
    assert (one.width, one.top_k) == (count, 2)
    kept = torch.tensor([0, 3])
    for key, weight in one.only(kept).items():
        assert torch.equal(weight, one.weights[key][kept])
    assert ("gate.e_score_correction_bias" in one.weights) == name.startswith("glm4")
    assert {key for _, key, _ in one.numbers(2)} == {"num_experts"}
    assert list(one.told(model.config, 2).values()) == [2]


def test_others_are_told_with_the_reason() -> None:
    assert list(routed_experts(tiny.build("llama"))) == []
    model = tiny.build("glm4_moe")
    grouped, coded = copy.deepcopy(model), copy.deepcopy(model)
    (one,) = routed_experts(grouped)
    one.module.gate.num_group = 2  # type: ignore[union-attr]
    assert "2 groups of experts" in next(iter(routed_experts(grouped)))[1]  # type: ignore[index]
    coded.get_submodule("model.layers.1.mlp.gate").register_buffer("expert_places", torch.arange(8))
    assert "places of its own" in next(iter(routed_experts(coded)))[1]  # type: ignore[index]
