from __future__ import annotations

import pytest
import torch

from inference_pio.anatomy.walk import experts
from inference_pio.calibration import CalibrationSource, collect_router_counts
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.calibration.help import inputs_for


@pytest.mark.parametrize("name", ["qwen3_moe", "glm4_moe", "glm4_moe_lite"])
def test_every_token_is_counted_for_each_expert_it_is_sent_to(name: str) -> None:
    model = tiny.build(name)
    before = fingerprint(model)
    source = CalibrationSource("two", (inputs_for(name), inputs_for(name)))
    counts = collect_router_counts(model, source)
    assert set(counts) == {path for path, _, _ in experts(model)}
    assert all(int(count.sum()) == source.tokens * 2 for count in counts.values())  # top 2
    assert before.differences(fingerprint(model)) == []


def test_padding_is_sent_nowhere() -> None:
    ids, mask = torch.ones(1, 6, dtype=torch.int64), torch.tensor([[0, 0, 1, 1, 1, 1]])
    source = CalibrationSource("padded", ({"input_ids": ids, "attention_mask": mask},))
    counts = collect_router_counts(tiny.build("qwen3_moe"), source)
    assert {int(count.sum()) for count in counts.values()} == {8}


def test_a_dense_model_has_none() -> None:
    assert collect_router_counts(tiny.build("llama"), CalibrationSource("none", ())) == {}
