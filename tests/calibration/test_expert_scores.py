"""Scores are what a plain walk over all tokens gives, padding left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_pio.anatomy.routed_experts import RoutedExperts, routed_experts
from inference_pio.calibration.expert_scores import CRITERIA, collect_expert_scores
from inference_pio.calibration.source import CalibrationSource
from tests import tiny


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen3_moe", "glm4_moe"])
def test_sums_are_those_of_a_plain_walk(name: str) -> None:
    model = tiny.build(name)
    mixtures = [one for one in routed_experts(model) if isinstance(one, RoutedExperts)]
    ids = torch.randint(1, 120, (2, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    source = CalibrationSource("tokens by chance", ({"input_ids": ids, "attention_mask": mask}, {"input_ids": ids}))
    scores = collect_expert_scores(model, mixtures, source)[mixtures[0].path]
    experts: Any = mixtures[0].module.experts
    count, weighted = torch.zeros(8), torch.zeros(8)
    for batch in source.batches:
        given: list[Any] = []
        handle = experts.register_forward_pre_hook(lambda _, args, given=given: given.append(args))
        model(**batch)
        handle.remove()
        hidden, chosen, shares = given[0]
        for row, token in enumerate(hidden):
            if "attention_mask" in batch and not batch["attention_mask"].flatten()[row]:
                continue
            for expert, share in zip(chosen[row].tolist(), shares[row], strict=True):
                inner = experts._apply_gate(experts.gate_up_proj[expert] @ token)
                count[expert] += 1
                weighted[expert] += float(share * (experts.down_proj[expert] @ inner).norm())
    torch.testing.assert_close(scores.count.float(), count)
    torch.testing.assert_close(scores.weighted.float(), weighted, rtol=1e-4, atol=1e-4)
    assert all(scores.by(criterion).isfinite().all() for criterion in CRITERIA)
