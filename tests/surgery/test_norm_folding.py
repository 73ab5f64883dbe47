"""Norms' weights move into what reads them where nothing is rounded away; what is tied or coarse stays, and is told."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from inference_pio.errors import NoEffect
from tests import tiny
from tests.surgery.help import operate, relative, skips
from tests.sweep import Case

NAMES = ["llama", "qwen3", "qwen3_moe", "qwen3_vl", "glm4_moe", "glm4_moe_lite"]


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_the_same_but_for_rounding(name: str) -> None:
    case = Case(name)
    receipt = operate(case.model, "norm_folding")
    for site in receipt.acted:
        norm: Any = case.model.get_submodule(site.path)
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
    assert not torch.equal(tiny.logits(case.model, name), case.logits)
    assert relative(tiny.logits(case.model, name), case.logits) <= 1e-5
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.parametrize("name", ["llama", "glm4_moe_lite"])
def test_in_float64_it_is_exact_to_what_the_model_rounds_itself(name: str) -> None:
    model: Any = tiny.build(name, torch.float64)
    model.set_experts_implementation("eager")
    ours = copy.deepcopy(model)
    operate(ours, "norm_folding")
    assert relative(tiny.logits(ours, name), tiny.logits(model, name)) <= 1e-7


def test_sixteen_bits_and_ties_are_kept_with_the_reason() -> None:
    with pytest.raises(NoEffect, match="bfloat16: folding would round them"):
        operate(tiny.build("llama", torch.bfloat16), "norm_folding")
    receipt = operate(tiny.build("qwen3"), "norm_folding")
    assert "is tied" in str(skips(receipt)["model.norm"])
    assert "model.norm" in [site.path for site in operate(tiny.build("llama"), "norm_folding").acted]
    with pytest.raises(NoEffect):
        operate(tiny.build("gpt2"), "norm_folding")


def test_latent_norms_are_folded_too() -> None:
    acted = {site.path for site in operate(tiny.build("glm4_moe_lite"), "norm_folding").acted}
    assert {f"model.layers.0.self_attn.{name}" for name in ("q_a_layernorm", "kv_a_layernorm")} <= acted
