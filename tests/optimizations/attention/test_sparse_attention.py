"""`sparse_attention`: its parameters, its places, what the profile decides, and how it stands with others."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from inference_pio.errors import InvalidSetting, NoEffect, NothingApplied
from inference_pio.manager import ModularOptimizationManager
from inference_pio.optimizations.attention.sparse_attention import SparseAttention
from tests import tiny
from tests.sweep import Case

OURS = dict(SparseAttention.on_small_models)
LENGTH = 460


def _tokens(length: int = LENGTH) -> torch.Tensor:
    return torch.randint(1, 120, (1, length), generator=torch.Generator().manual_seed(3))


def _apply(model: Any, **parameters: Any) -> Any:
    manager = ModularOptimizationManager()
    manager.apply_optimizations(model, ["sparse_attention"], parameters={"sparse_attention": OURS | parameters})
    return manager.get_receipts(model)[0]


# ------------------------------------------------------------------ parameters


def test_the_default_window_is_2048_and_a_ratio_chooses_another() -> None:
    assert SparseAttention().parameters.pattern.window == 2048
    for ratio in (0.1, 0.5, 0.9):
        pattern = SparseAttention({"sparsity_ratio": ratio}).parameters.pattern
        length = 32768
        left_out = 1 - pattern.seen(0, length) / (length * (length + 1) / 2)
        assert left_out == pytest.approx(ratio, abs=0.01)


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"window": 512, "sparsity_ratio": 0.5}, "two budgets: give one of them"),
        ({"window": 0}, "window"),
        ({"stride": 100}, "stride"),
        ({"sparsity_ratio": 0.0}, "sparsity_ratio"),
        ({"sparsity_ratio": 1.0}, "sparsity_ratio"),
        ({"min_coverage": 1.5}, "min_coverage"),
        ({"calibration": [["a"]]}, "calibration"),
    ],
)
def test_wrong_parameters_are_told(parameters: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidSetting, match=told):
        SparseAttention(parameters)


# ------------------------------------------------------------------ places


def test_the_vision_tower_is_left_alone() -> None:
    receipt = _apply(tiny.build("qwen3_vl"))
    assert {site.role for site in receipt.acted} == {"attention"}
    assert {site.skip for site in receipt.sites if site.role == "vision"} == {
        "it does not attend to earlier tokens alone"
    }


def test_layers_with_a_sliding_window_are_left_alone() -> None:
    sizes = tiny.DECODER | {"num_hidden_layers": 3, "vocab_size": 128, "intermediate_size": 64, "head_dim": 16}
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    mixed = Qwen3ForCausalLM(Qwen3Config(**sizes, layer_types=kinds, sliding_window=32, use_sliding_window=True))
    receipt = _apply(mixed.eval())
    assert [site.path for site in receipt.acted] == ["model.layers.0.self_attn", "model.layers.2.self_attn"]
    assert "sliding window" in next(site.skip for site in receipt.sites if not site.acts)
    all_sliding = MistralForCausalLM(MistralConfig(**sizes, sliding_window=32)).eval()
    with pytest.raises(NoEffect, match="sliding window"):
        _apply(all_sliding)


def test_the_first_layers_stay_dense_where_that_is_asked_for() -> None:
    receipt = _apply(tiny.build("llama"), dense_layers=2)
    assert [site.path for site in receipt.acted] == ["model.layers.2.self_attn"]


def test_a_model_too_short_for_it_is_told_in_the_plan() -> None:
    with pytest.raises(NoEffect, match="takes at most 512 tokens, and attention stays dense below 4096"):
        ModularOptimizationManager().plan(tiny.build("llama"), ["sparse_attention"])


def test_a_window_too_wide_for_the_model_is_told_in_the_plan_as_well() -> None:
    with pytest.raises(NoEffect, match="takes at most 512 tokens, and attention stays dense below 640"):
        _apply(tiny.build("llama"), window=256)


# ------------------------------------------------------------------ what the profile decides


def test_a_plan_says_that_the_profile_decides_and_the_receipt_what_it_decided() -> None:
    case = Case("qwen3")
    plan = case.manager.plan(case.model, ["sparse_attention"])
    assert "decided when it is applied" in str(plan)
    assert "key_heads" not in plan.steps[0].decision
    case.apply("sparse_attention")
    (receipt,) = case.manager.get_receipts(case.model)
    assert receipt.decision["key_heads"] == {f"model.layers.{layer}.self_attn": [0, 1] for layer in range(3)}
    assert receipt.decision["calibration"]["name"] == "token ids of the user"
    assert "6 of 6 key heads follow the pattern." in receipt.notes
    assert json.loads(json.dumps(receipt.to_json()))["decision"] == receipt.decision


def _profile(shares: list[list[float]]) -> dict[str, Any]:
    coverage = {f"model.layers.{layer}.self_attn": heads for layer, heads in enumerate(shares)}
    return {"sinks": 64, "window": 64, "stride": 0, "coverage": coverage}


MIXED = _profile([[0.99, 0.96, 0.97, 0.90], [0.5, 0.99, 0.2, 0.1], [0.1, 0.99, 0.95, 0.95]])


def test_heads_that_share_keys_follow_the_pattern_only_together() -> None:
    model = tiny.build("llama")
    receipt = _apply(model, profile=MIXED, min_coverage=0.95)
    assert list(receipt.decision["key_heads"].values()) == [[0], [], [1]]
    names = [layer.self_attn.config._attn_implementation for layer in model.model.layers]
    assert ["fixed" in name for name in names] == [True, False, True]


def test_a_decision_is_a_profile_for_the_next_model() -> None:
    first = _apply(tiny.build("llama"))
    again = _apply(tiny.build("llama"), profile=first.decision)
    assert again.decision == first.decision


def test_where_no_head_qualifies_an_order_raises_and_a_wish_is_left_out() -> None:
    case = Case("llama")
    low = {**OURS, "min_coverage": 1.0}
    with pytest.raises(NoEffect, match=r"no head of this LlamaForCausalLM keeps 100% .* \(the best keeps"):
        case.manager.apply_optimizations(case.model, ["sparse_attention"], parameters={"sparse_attention": low})
    case.check_untouched()
    with pytest.raises(NothingApplied, match="no head"):
        case.manager.set_target(case.model, [case.manager.wanted("sparse_attention", low, order=False)])
    case.check_untouched()


@pytest.mark.parametrize("profile", [_profile([[1.0] * 4] * 2), _profile([[1.0] * 3] * 3)])
def test_a_profile_of_another_model_is_refused_and_nothing_is_touched(profile: dict[str, Any]) -> None:
    case = Case("llama")
    with pytest.raises(InvalidSetting, match="made for another model"):
        case.apply("sparse_attention", parameters={"sparse_attention": OURS | {"profile": profile}})
    case.check_untouched()


# ------------------------------------------------------------------ running, and with others


@torch.no_grad()
def test_what_was_served_and_what_not_shows_in_the_status() -> None:
    case = Case("qwen3")
    case.apply("sparse_attention")
    case.model(input_ids=_tokens())
    case.model(input_ids=_tokens(20))
    counted = case.manager.get_optimization_status(case.model)["optimizations"]["sparse_attention"]["counted"]
    assert counted["sparse_calls"] == {"prefill": 3}
    assert counted["dense_calls"] == {"short rows": 3}
    assert 0 < counted["density"] < 1
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "glm4_moe_lite"])
@pytest.mark.parametrize("order", [("flash_attention", "sparse_attention"), ("sparse_attention", "flash_attention")])
@torch.no_grad()
def test_exact_attention_serves_the_dense_part_whichever_comes_first(name: str, order: tuple[str, str]) -> None:
    case = Case(name)
    shares = [[1.0] * 2 + [0.0] * 2] * len(case.model.model.layers)
    given = {"sparse_attention": OURS | {"profile": _profile(shares), "min_coverage": 0.5}}
    for one in order:
        case.apply(one, parameters={one: given[one]} if one in given else {})
    own = case.model.model.layers[0].self_attn.config._attn_implementation
    assert "fixed" in own
    assert "exact" in own
    together = case.model(input_ids=_tokens()).logits
    case.manager.remove_optimizations(case.model, ["flash_attention"])
    torch.testing.assert_close(case.model(input_ids=_tokens()).logits, together, rtol=1e-4, atol=1e-4)
    case.apply("flash_attention")
    assert torch.equal(case.model(input_ids=_tokens()).logits, together)
    case.manager.remove_optimizations(case.model, ["sparse_attention"])
    assert (case.model(input_ids=_tokens()).logits - together).abs().max() > 1e-3
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@torch.no_grad()
def test_a_generation_goes_on_as_a_forward_over_its_own_text_would() -> None:
    model = tiny.build("qwen3")
    _apply(model)
    out = model.generate(input_ids=_tokens(400), max_new_tokens=8, do_sample=False)
    expected = model(input_ids=out[:, :-1]).logits[:, 399:].argmax(-1)
    assert torch.equal(out[:, 400:], expected)


def test_sequences_longer_than_a_static_cache_are_told_by_the_library_as_before() -> None:
    from transformers import StaticCache

    model = tiny.build("llama")
    _apply(model)
    cache = StaticCache(config=model.config, max_cache_len=300)
    with torch.no_grad(), pytest.raises((RuntimeError, IndexError, ValueError)):
        model(input_ids=_tokens(), past_key_values=cache)
