"""Exact attention on trained models: the same answers, in float32 to the last greedy token."""

from __future__ import annotations

import pytest
import torch

from inference_pio.manager import ModularOptimizationManager
from inference_pio.measure import Reference, compare
from inference_pio.measure.greedy import GreedyReference
from tests.quality import reference_models
from tests.quality.reference_models import NAMES
from tests.sweep import rotating, turn_of_this_commit


@pytest.mark.parametrize("name", NAMES)
def test_answers_differ_from_plain_attention_by_rounding_alone(name: str) -> None:
    model = reference_models.load(name, torch.float32)
    model.set_attn_implementation("eager")
    with Reference.record(model, reference_models.draw(0)) as reference:
        ModularOptimizationManager().apply_optimizations(model, ["flash_attention"])
        quality = compare(reference, model)
    assert quality.kl_nats_per_token <= 1e-8
    assert quality.top1_agreement >= 0.999


@pytest.mark.parametrize("name", rotating(NAMES, turn_of_this_commit()))
def test_128_greedy_tokens_are_those_of_plain_attention_in_float32(name: str) -> None:
    model = reference_models.load(name, torch.float32)
    model.set_attn_implementation("eager")
    reference = GreedyReference.record(model, reference_models.draw(1, 2, 64))
    ModularOptimizationManager().apply_optimizations(model, ["flash_attention"])
    assert reference.compare(model).identical.share == 1.0


@torch.no_grad()
def decoded(model: torch.nn.Module, tokens: torch.Tensor, prompt: int = 192) -> torch.Tensor:
    """Log-probabilities of the next token, each step after a prompt given its true token."""
    out = model(tokens[:, :prompt], use_cache=True)
    steps = [out.logits[:, -1]]
    for place in range(prompt, tokens.shape[1]):
        out = model(tokens[:, place : place + 1], past_key_values=out.past_key_values)
        steps.append(out.logits[:, -1])
    return torch.stack(steps[1:]).double().log_softmax(-1)


def test_absorbed_decode_over_int8_weights_strays_no_further_than_expanding_them() -> None:
    model = reference_models.load("glm4_moe_lite", torch.float32)
    tokens, manager = reference_models.draw(2, 4, 256), ModularOptimizationManager()
    original = decoded(model, tokens)
    manager.apply_optimizations(model, ["tensor_compression"])
    expanding = decoded(model, tokens)
    manager.apply_optimizations(model, ["flash_attention"])
    absorbed = decoded(model, tokens)
    lost = [(original.exp() * (original - found)).sum(-1).mean().item() for found in (expanding, absorbed)]
    assert 0 < lost[1] <= 1.1 * lost[0]
