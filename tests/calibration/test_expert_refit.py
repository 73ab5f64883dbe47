"""Experts that stay make up for those that went, over tokens alone that are no padding; the model is not edited."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_pio.anatomy.routed_experts import RoutedExperts, routed_experts
from inference_pio.calibration.expert_refit import refit_experts
from inference_pio.calibration.source import CalibrationSource
from inference_pio.calibration.twins import pruned_twin
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.calibration.test_narrowed import text


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen3_moe", "glm4_moe"])
def test_a_mixture_comes_closer_to_what_it_said(name: str) -> None:
    model, source = tiny.build(name), text()
    (one,) = [one for one in routed_experts(model) if isinstance(one, RoutedExperts)]
    before = fingerprint(model)
    few = one.first(6)
    fitted = refit_experts(model, one, few, 6, source)
    assert before.differences(fingerprint(model)) == []
    assert [name for name in few if not torch.equal(few[name], fitted[name])] == [one.down]
    given: list[torch.Tensor] = []
    handle = one.module.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    for batch in source.batches:
        model(**batch)
    handle.remove()
    hidden: Any = torch.cat(given, 1)
    errors = [
        (pruned_twin(one, weights, 6)(hidden) - one.module(hidden)).square().sum().item() for weights in (few, fitted)
    ]
    assert errors[1] < 0.9 * errors[0]


@torch.no_grad()
def test_padding_says_nothing() -> None:
    model = tiny.build("qwen3_moe")
    (one,) = [one for one in routed_experts(model) if isinstance(one, RoutedExperts)]
    ids = torch.randint(1, 120, (1, 40), generator=torch.Generator().manual_seed(3))
    short = CalibrationSource("short", ({"input_ids": ids},))
    mask = torch.cat([torch.ones_like(ids), torch.zeros_like(ids)], 1)
    padded = CalibrationSource("padded", ({"input_ids": torch.cat([ids, ids], 1), "attention_mask": mask},))
    found = [refit_experts(model, one, one.first(6), 6, source)[one.down] for source in (short, padded)]
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)
