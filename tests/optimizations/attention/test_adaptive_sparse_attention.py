"""adaptive_sparse_attention: where it acts and where not, with what, over which dense function, and exactly undone."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from transformers import StaticCache

from inference_pio.contract.optimization import OptimizationInterface, OptimizationType
from inference_pio.contract.site import Site
from inference_pio.errors import ConflictError, InvalidSetting, NoEffect, RefusedOnOptimized, UnknownName
from inference_pio.manager import ModularOptimizationManager
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.quality import reference_models
from tests.sweep import Case

NAME = "adaptive_sparse_attention"
HF = [name for name in tiny.TINY if name != "plain"]
OPEN = {"dense_below": 0, "dense_above": 1.0}


def apply(model: Any, *others: str, **parameters: Any) -> ModularOptimizationManager:
    manager = ModularOptimizationManager()
    manager.apply_optimizations(model, [NAME, *others], parameters={NAME: {**OPEN, **parameters}})
    return manager


def counted(manager: ModularOptimizationManager, model: Any) -> dict[str, Any]:
    found: dict[str, Any] = manager.get_optimization_status(model)["optimizations"][NAME]["counted"]
    return found


@pytest.mark.parametrize("name", HF)
def test_text_attention_is_served_and_restored(name: str) -> None:
    case = Case(name)
    manager = apply(case.model)
    receipt = manager.get_receipts(case.model)[0]
    assert any("on a CPU" in note for note in receipt.notes)
    assert {site.role for site in receipt.acted} == {"attention"}
    torch.testing.assert_close(tiny.logits(case.model, name), case.logits, rtol=1e-3, atol=1e-3)
    told = counted(manager, case.model)
    assert told["sparse_calls"]["prefill"] > 0
    assert json.loads(json.dumps(told)) == told
    manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.parametrize("order", [(NAME, "flash_attention"), ("flash_attention", NAME)])
@pytest.mark.parametrize("gone", [NAME, "flash_attention"])
def test_it_stands_over_whatever_serves_the_dense_part(order: tuple[str, str], gone: str) -> None:
    case = Case("qwen3")
    manager = ModularOptimizationManager()
    for name in order:
        manager.apply_optimizations(case.model, [name], parameters={name: OPEN} if name == NAME else None)
    served = case.model.config._attn_implementation
    assert served == "inference_pio_adaptive_over_inference_pio_exact_fused"
    torch.testing.assert_close(tiny.logits(case.model, "qwen3"), case.logits, rtol=1e-3, atol=1e-3)
    manager.remove_optimizations(case.model, [gone])
    left = {NAME: "inference_pio_exact_fused", "flash_attention": "inference_pio_adaptive_over_sdpa"}[gone]
    assert case.model.config._attn_implementation == left
    manager.remove_optimizations(case.model)
    case.check_untouched()


def test_a_model_for_short_texts_is_passed_over_with_the_reason() -> None:
    case = Case("llama")
    with pytest.raises(NoEffect, match="at most 512 tokens, and attention stays dense below 4096"):
        case.manager.apply_optimizations(case.model, [NAME], parameters={NAME: {"dense_below": 4096}})
    case.check_untouched()


class OtherPattern(OptimizationInterface):
    """Another owner of the pattern."""

    name = "other_pattern"
    optimization_type = OptimizationType.ATTENTION

    def sites(self, model: Any) -> list[Site]:
        return [
            Site(path, claims=frozenset({"attention.pattern"})) for path, _ in model.named_modules() if "attn" in path
        ]

    def apply(self, model: Any) -> Any:
        self.journal.set(model, "patterned", True)
        return model


def test_two_patterns_are_refused_together() -> None:
    case = Case("llama")
    manager = ModularOptimizationManager()
    manager.register_optimization(OtherPattern)
    with pytest.raises(ConflictError, match=r"attention\.pattern"):
        manager.apply_optimizations(case.model, [NAME, "other_pattern"], parameters={NAME: OPEN})
    case.check_untouched()


@pytest.mark.parametrize(
    ("wrong", "error", "told"),
    [
        ({"coverage": 1.0}, InvalidSetting, "coverage"),
        ({"coverage": "much"}, InvalidSetting, "coverage"),
        ({"block_size": 100}, InvalidSetting, "block_size"),
        ({"mode": "exact"}, InvalidSetting, "mode"),
        ({"budget": 10}, InvalidSetting, "budget"),
        ({"mode": "certified", "budget": 4096}, InvalidSetting, "certified"),
        ({"coverge": 0.9}, UnknownName, "coverage"),
        ({"audit_rate": 0.0}, InvalidSetting, "audit_rate"),
    ],
)
def test_wrong_parameters_are_told(wrong: dict[str, Any], error: type[Exception], told: str) -> None:
    case = Case("llama")
    with pytest.raises(error, match=told):
        case.manager.apply_optimizations(case.model, [NAME], parameters={NAME: wrong})
    case.check_untouched()


def test_attention_weights_are_refused_and_never_silently_left_out() -> None:
    case = Case("qwen3")
    apply(case.model)
    with pytest.raises(RefusedOnOptimized, match="output_attentions"):
        case.model(**tiny.inputs("qwen3", case.model), output_attentions=True)


@pytest.mark.parametrize("how", ["dynamic", "static", "beams", "padded"])
def test_generation_goes_on_as_dense_attention_does_where_all_is_kept(how: str) -> None:
    model = reference_models.load("qwen3", torch.float32)
    tokens = reference_models.draw(0, 2, 200)
    given: dict[str, Any] = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    given |= {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    if how == "static":
        given |= {"cache_implementation": "static", "disable_compile": True}
    if how == "beams":
        given |= {"num_beams": 3}
    if how == "padded":
        given["attention_mask"][0, :77] = 0
    expected = model.generate(**given)
    manager = apply(model, coverage=0.999)
    assert torch.equal(model.generate(**given), expected)
    calls = counted(manager, model)
    assert calls["sparse_calls"].get("prefill", 0) > 0
    if how in ("dynamic", "static", "padded"):
        assert calls["sparse_calls"].get("decode", 0) > 0, calls


def test_a_static_cache_that_is_used_again_is_read_anew() -> None:
    model = reference_models.load("qwen3", torch.float32)
    manager = apply(model, coverage=0.9, audit_rate=1.0)
    cache = StaticCache(config=model.config, max_cache_len=400)
    for number in range(2):
        cache.reset()
        tokens = reference_models.draw(number, 1, 300)
        with torch.no_grad():
            model(tokens[:, :280], past_key_values=cache)
            for place in range(280, 300):
                model(tokens[:, place : place + 1], past_key_values=cache)
    audits = counted(manager, model)["audits"].values()
    assert all(found["decode"]["coverage_mean"] >= 0.9 for found in audits)


def test_a_copy_counts_for_itself_and_a_second_model_is_untouched() -> None:
    model, other = tiny.build("llama"), tiny.build("llama")
    before = fingerprint(other)
    manager = apply(model)
    twin = copy.deepcopy(model)
    tiny.logits(model, "llama")
    assert counted(manager, twin)["sparse_calls"] == {}
    tiny.logits(twin, "llama")
    assert counted(manager, twin)["sparse_calls"] == counted(manager, model)["sparse_calls"]
    assert before.differences(fingerprint(other)) == []


def test_training_takes_the_dense_way() -> None:
    case = Case("llama")
    manager = apply(case.model)
    case.model.train()
    given = tiny.inputs("llama", case.model)
    case.model(**given).logits.sum().backward()
    case.model.zero_grad()
    assert counted(manager, case.model)["sparse_calls"] == {}
    assert counted(manager, case.model)["dense_calls"] == {"gradients": 3}
