"""Other modules compute for a while, and nothing of the model is edited by it."""

from __future__ import annotations

import pytest
import torch

from inference_pio.calibration.stood_in import stood_in
from inference_pio.formats.int8 import Int8Experts, Int8Linear
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny


def test_the_answers_are_those_of_a_model_that_has_the_other_modules() -> None:
    model, other = tiny.build("qwen3_moe"), tiny.build("qwen3_moe")
    block, plain = model.model.layers[1], tiny.logits(model, "qwen3_moe")
    others = {
        "model.layers.1.mlp.experts": Int8Experts.from_experts(block.mlp.experts),
        "model.layers.1.self_attn.q_proj": Int8Linear.from_linear(block.self_attn.q_proj),
    }
    before = fingerprint(model)
    with stood_in(model, others):
        found = tiny.logits(model, "qwen3_moe")
    other.model.layers[1].mlp.experts = others["model.layers.1.mlp.experts"]
    other.model.layers[1].self_attn.q_proj = others["model.layers.1.self_attn.q_proj"]
    assert torch.equal(found, tiny.logits(other, "qwen3_moe"))
    assert not torch.equal(found, plain)
    assert before.differences(fingerprint(model)) == []
    assert torch.equal(tiny.logits(model, "qwen3_moe"), plain)


def test_an_error_within_leaves_no_hook() -> None:
    model = tiny.build("llama")
    with pytest.raises(AttributeError), stood_in(model, {"lm_head": torch.nn.Identity(), "nowhere": torch.nn.ReLU()}):
        pass
    assert not model.lm_head._forward_hooks
