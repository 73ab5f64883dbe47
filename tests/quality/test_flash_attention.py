"""Exact attention on trained models: the same answers, in float32 to the last greedy token."""

from __future__ import annotations

import pytest
import torch

from inference_pio.manager import ModularOptimizationManager
from inference_pio.measure import Reference, compare
from inference_pio.measure.greedy import GreedyReference
from tests.quality import reference_models
from tests.quality.reference_models import NAMES


@pytest.mark.parametrize("name", NAMES)
def test_answers_differ_from_plain_attention_by_rounding_alone(name: str) -> None:
    model = reference_models.load(name, torch.float32)
    model.set_attn_implementation("eager")
    with Reference.record(model, reference_models.draw(0)) as reference:
        ModularOptimizationManager().apply_optimizations(model, ["flash_attention"])
        quality = compare(reference, model)
    assert quality.kl_nats_per_token <= 1e-8
    assert quality.top1_agreement >= 0.999


@pytest.mark.parametrize("name", NAMES)
def test_128_greedy_tokens_are_those_of_plain_attention_in_float32(name: str) -> None:
    model = reference_models.load(name, torch.float32)
    model.set_attn_implementation("eager")
    reference = GreedyReference.record(model, reference_models.draw(1, 2, 64))
    ModularOptimizationManager().apply_optimizations(model, ["flash_attention"])
    assert reference.compare(model).identical.share == 1.0
