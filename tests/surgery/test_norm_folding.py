"""Norms' weights move into what reads them where nothing is rounded away; what is tied or coarse stays, and is told."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from inference_pio.errors import NoEffect
from tests import tiny
from tests.surgery.help import operate, relative, skips
from tests.sweep import Case, small_manager

NAMES = ["llama", "qwen3", "qwen3_moe", "qwen3_vl", "glm4_moe", "glm4_moe_lite"]
TEXT = [[1 + (place * place + row) % 96 for place in range(16)] for row in range(4)]


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
    receipt = operate(ours, "norm_folding")
    assert relative(tiny.logits(ours, name), tiny.logits(model, name)) <= 1e-7
    assert any("a router reads it" in (site.skip or "") for site in receipt.sites) == (name == "glm4_moe_lite")


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


def norm_at_two_places(model: Any) -> None:
    model.model.layers[1].input_layernorm = model.model.layers[0].input_layernorm


def mlp_at_two_places(model: Any) -> None:
    model.model.layers[1].mlp = model.model.layers[0].mlp


def hook_of_a_norm(model: Any) -> None:
    model.model.layers[0].input_layernorm.register_forward_hook(lambda module, given, result: result + 1)


def hook_of_a_reader(model: Any) -> None:
    model.model.layers[0].self_attn.q_proj.register_forward_pre_hook(lambda module, given: (given[0] + 1,))


def hook_of_an_mlp(model: Any) -> None:
    model.model.layers[0].mlp.register_forward_pre_hook(lambda module, given: (given[0] + 1,))


def forward_of_an_attention(model: Any) -> None:
    attention = model.model.layers[0].self_attn
    inner = attention.forward
    attention.forward = lambda hidden_states, **named: inner(hidden_states + 1, **named)


@pytest.mark.parametrize(
    "change",
    [norm_at_two_places, mlp_at_two_places, hook_of_a_norm, hook_of_a_reader, hook_of_an_mlp, forward_of_an_attention],
)
def test_norms_that_others_see_too_are_kept_with_the_reason(change: Callable[[Any], None]) -> None:
    model = tiny.build("llama")
    change(model)
    before = tiny.logits(model, "llama")
    receipt = operate(model, "norm_folding")
    assert relative(tiny.logits(model, "llama"), before) <= 1e-5
    assert {path: reason for path, reason in skips(receipt).items() if "layers.0" in path}


def test_a_hook_of_a_later_stage_that_stood_first_keeps_no_norm_as_it_is() -> None:
    alone, behind = tiny.build("qwen3"), tiny.build("qwen3")
    manager = small_manager()
    manager.apply_optimizations(behind, ["adaptive_sparse_attention"])
    operate(behind, "norm_folding")
    assert manager.get_receipts(behind)[0].acted == operate(alone, "norm_folding").acted


@pytest.mark.parametrize("refit", [True, False])
def test_before_an_attention_that_goes_a_norm_keeps_its_weight(refit: bool) -> None:
    one, both = tiny.build("llama"), tiny.build("llama")
    operate(one, "attention", text=TEXT, refit=refit)
    operate(both, "norm_folding", "attention", text=TEXT, refit=refit)
    assert relative(tiny.logits(both, "llama"), tiny.logits(one, "llama")) <= 1e-5


def test_the_last_hidden_state_is_told_to_be_another() -> None:
    told = "The last hidden state is that of a norm without a weight"
    for name, changes in (("llama", True), ("qwen3", False)):
        model: Any = tiny.build(name)
        given = tiny.inputs(name, model)
        before = model(**given, output_hidden_states=True).hidden_states[-1].detach()
        receipt = operate(model, "norm_folding")
        after = model(**given, output_hidden_states=True).hidden_states[-1].detach()
        assert (relative(after, before) > 1e-3) is changes is any(told in note for note in receipt.notes)
