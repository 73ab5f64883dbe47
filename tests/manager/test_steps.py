"""A step asks for its sites again on the live model, checks, acts, and writes its receipt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.contract.optimization import Stage
from inference_pio.contract.site import Site
from inference_pio.errors import InvalidModel, NoEffect, NothingApplied
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.sweep import Case, Marker


def test_a_receipt_counts_bytes_before_and_after() -> None:
    case = Case("llama", torch.bfloat16)
    case.apply("tensor_compression")
    receipt = case.manager.get_receipts(case.model)[0]
    assert receipt.weight_bytes_after < 0.8 * receipt.weight_bytes_before
    assert receipt.parked_bytes > 0
    assert receipt.seconds > 0
    assert receipt.backend
    assert "MB saved" in str(receipt)


def test_preflight_refuses_before_the_first_write() -> None:
    case = Case("llama")
    weight = case.model.model.layers[1].mlp.down_proj.weight
    kept = weight.detach()[3, 3].clone()
    with torch.no_grad():
        weight[3, 3] = float("nan")
    with pytest.raises(InvalidModel, match=r"layers\.1\.mlp\.down_proj\.weight holds NaN"):
        case.apply("tensor_compression")
    with torch.no_grad():
        weight[3, 3] = kept
    case.check_untouched()


class Choosing(Marker):
    """Chooses by what the live model does, and never on a plan."""

    name = "choosing"
    useful = True

    def decide(self, model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
        return {"kind": "by data"}

    def decide_from_data(self, model: nn.Module, sites: Sequence[Site], decision: dict[str, Any]) -> dict[str, Any]:
        if not self.useful:
            raise NoEffect("choosing: the data leave nothing to do.")
        return {**decision, "chosen": tiny.logits(model, "llama").argmax().item()}


class Useless(Choosing):
    name = "useless"
    useful = False


def test_what_only_data_can_tell_is_decided_on_the_live_model_alone() -> None:
    case = Case("llama")
    case.manager.register_optimization(Choosing)
    assert case.manager.plan(case.model, ["choosing"]).steps[0].decision == {"kind": "by data"}
    case.apply("choosing")
    (receipt,) = case.manager.get_receipts(case.model)
    assert receipt.decision == {"kind": "by data", "chosen": case.logits.argmax().item()}
    before = fingerprint(case.model)
    case.apply("choosing")
    assert before.differences(fingerprint(case.model)) == []
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_an_order_that_the_data_leave_nothing_to_do_for_raises_and_a_wish_is_left_out_with_the_reason() -> None:
    case = Case("llama")
    case.manager.register_optimization(Useless)
    assert not case.apply("useless")
    assert not case.apply("flash_attention", "useless")
    case.check_untouched()
    case.manager.set_target(case.model, ["flash_attention", case.manager.wanted("useless", order=False)])
    status = case.manager.get_optimization_status(case.model)
    assert (status["applied"], status["skipped"][0]["name"]) == (["flash_attention"], "useless")
    assert "nothing to do" in status["skipped"][0]["reason"]
    with pytest.raises(NothingApplied, match="nothing to do"):
        case.manager.set_target(case.model, [case.manager.wanted("useless", order=False)])
    assert case.manager.get_model_optimizations(case.model) == ["flash_attention"]
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


class Learning(Marker):
    """Learns from all that the model says, edits one place, and belongs before what computes."""

    name = "learning"
    stage = Stage.STRUCTURE

    def sites(self, model: nn.Module) -> Sequence[Site]:
        return (Site("model.norm", whole=False),)

    def decide_from_data(self, model: nn.Module, sites: Sequence[Site], decision: dict[str, Any]) -> dict[str, Any]:
        return {"sum": tiny.logits(model, "llama").abs().sum().item()}

    def apply(self, model: nn.Module) -> nn.Module:
        self.journal.set(model.get_submodule("model.norm"), "learned", self.step.decision.get("sum"))
        return model


class Doubling(Marker):
    """Changes what the model says, at a place of its own."""

    name = "doubling"

    def sites(self, model: nn.Module) -> Sequence[Site]:
        return (Site("lm_head", whole=False),)

    def apply(self, model: nn.Module) -> nn.Module:
        self.journal.hook(model.get_submodule("lm_head"), "forward", lambda module, given, out: out * 2)
        return model


def test_what_learns_from_the_model_learns_the_same_whatever_of_later_stages_stood_first() -> None:
    learned = []
    for calls in (["learning"], ["doubling", "learning"], ["learning", "doubling"]):
        case = Case("llama")
        case.manager.register_optimization(Learning)
        case.manager.register_optimization(Doubling)
        for name in calls:
            assert case.apply(name)
        learned.append(case.model.model.norm.learned)
        case.manager.remove_optimizations(case.model)
        case.check_untouched()
    assert learned[0] == learned[1] == learned[2]
