"""Spiking experts: the library's call, each expert with neurons of its own, and what they count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy.walk import experts
from inference_pio.errors import InvalidModel
from inference_pio.kernels.spikes import Code
from inference_pio.spiking.experts import SpikingExperts
from inference_pio.spiking.module import from_counts_at_once
from tests import tiny

FINE = Code("radix", 255, second=True)


def fused(name: str = "qwen3_moe") -> Any:
    return next(module for _, module, _ in experts(tiny.build(name)))


def spiking(original: Any, code: Code = FINE) -> SpikingExperts:
    count, hidden, inner = original.down_proj.shape
    step = torch.full((count, inner), 1 / code.levels, dtype=torch.float64)
    return SpikingExperts.from_experts(original, torch.full((hidden,), 3 / code.levels).double(), step, code)


def routed(original: Any, tokens: int = 5, slots: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    count, hidden, _ = original.down_proj.shape
    chosen = torch.stack([torch.randperm(count, generator=made)[:slots] for _ in range(tokens)])
    return torch.randn(tokens, hidden, generator=made), chosen, torch.rand(tokens, slots, generator=made)


@pytest.mark.parametrize("name", ["qwen3_moe", "glm4_moe", "glm4_moe_lite"])
def test_many_levels_come_close_to_the_original(name: str) -> None:
    original = fused(name)
    given = routed(original)
    with torch.no_grad():
        wanted = original(*given)
        found = spiking(original)(*given)
        with from_counts_at_once():
            at_once = spiking(original)(*given)
    assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()
    assert torch.equal(found, at_once)


def test_an_expert_elsewhere_gives_nothing_and_no_token_is_no_error() -> None:
    original = fused()
    hidden, chosen, weights = routed(original)
    module = spiking(original)
    elsewhere = torch.where(chosen == chosen[0, 0], len(original.down_proj), chosen)
    gone = torch.where(chosen == chosen[0, 0], 0.0, weights)
    assert torch.allclose(module(hidden, elsewhere, weights), module(hidden, chosen, gone), atol=1e-6)
    assert module(hidden[:0], chosen[:0], weights[:0]).shape == (0, hidden.shape[1])


def test_a_token_is_told_once_and_each_of_its_experts_adds() -> None:
    original = fused()
    module = spiking(original).tell("experts", spiking(original).tally)
    hidden, chosen, weights = routed(original)
    module(hidden, chosen, weights)
    first, second = (module.tally.layers[f"experts.{name}"] for name in ("gate_up", "down"))
    width, inner = hidden.shape[1], original.down_proj.shape[2]
    assert (int(first["activations"]), int(first["multiplies"])) == (5 * width, 10 * width * 2 * inner)
    assert (int(second["activations"]), int(second["multiplies"])) == (10 * inner, 10 * inner * width)
    assert float(first["accumulates"]) == 2 * float(first["spikes"]) * 2 * inner  # two experts a token


def test_a_plans_experts_have_the_shapes_and_other_layouts_are_refused() -> None:
    shaped, real = SpikingExperts.shaped(fused().to("meta"), FINE), spiking(fused())
    assert {name: (one.shape, one.dtype) for name, one in shaped.state_dict().items()} == {
        name: (one.shape, one.dtype) for name, one in real.state_dict().items()
    }
    with pytest.raises(InvalidModel, match="Linear has no spiking form"):
        SpikingExperts.from_experts(nn.Linear(2, 2), torch.ones(2), torch.ones(1, 2), FINE)
