"""Tokens go from both ends, ids stay: kept logits are the same bits, ties stay ties, named tokens are never lost."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils import prune
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from inference_pio.artifact import load, save
from inference_pio.errors import InvalidSetting, NoEffect, RefusedOnOptimized
from inference_pio.manager import ModularOptimizationManager
from inference_pio.measure.target import vocab_size
from inference_pio.surgery.vocabulary import ids_of, runs_of
from tests import tiny
from tests.surgery.help import operate
from tests.sweep import Case

NAMES = ["llama", "gpt2", "qwen3", "qwen3_moe", "qwen3_vl", "glm4_moe", "glm4_moe_lite"]
FROM, TO = 1, 120
"""Those of the tiny models' inputs; what they generate may be others."""


@pytest.mark.parametrize("ids", [[0], [0, 1, 2], [3, 7, 8, 20], [1, 3, 5]])
def test_runs_are_ids(ids: list[int]) -> None:
    assert ids_of(runs_of(ids)).tolist() == ids


@pytest.mark.parametrize("name", NAMES)
def test_kept_logits_are_the_same_bits(name: str) -> None:
    case = Case(name)
    model: Any = case.model
    given = tiny.inputs(name, model)
    with torch.no_grad():
        wanted = model(**given).logits
        operate(model, "vocabulary", keep_ids=list(range(FROM, TO)))
        found = model(**given).logits
    kept = ids_of(next(iter(_decision(model).values()))["kept"])
    assert found.shape == wanted.shape
    assert torch.equal(found[..., kept], wanted[..., kept])
    assert found.isneginf().sum() == (wanted.shape[-1] - len(kept)) * found[..., 0].numel()
    out = copy.deepcopy(model).generate(**given, max_new_tokens=8, do_sample=True, top_k=0, pad_token_id=0)
    assert set(out.flatten().tolist()) <= set(kept.tolist())
    case.manager.remove_optimizations(model)
    case.check_untouched()


def _decision(model: Any) -> Any:
    return ModularOptimizationManager().get_receipts(model)[0].decision["edits"]["vocabulary"]


def test_ties_stay_and_bytes_go() -> None:
    model: Any = tiny.build("qwen3")
    receipt = operate(model, "vocabulary", keep_ids=[5, 6, 7, 8])
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert len(model.lm_head.weight) == 5  # and the padding token
    places, kept = 128 * 8, 5 * 8
    assert receipt.weight_bytes_before - receipt.weight_bytes_after == (128 - 5) * 64 * 4 - places - kept


def test_named_tokens_and_those_of_a_text_are_kept() -> None:
    model: Any = tiny.build("qwen3_vl")
    model.generation_config.eos_token_id = [17, 99]
    receipt = operate(model, "vocabulary", text=[[1, 2, 3, 4], [5, 2, 6, 1]])
    (place,) = receipt.decision["learned"]["vocabulary"].values()
    assert ids_of(place["kept"]).tolist() == [0, 1, 2, 3, 4, 5, 6, 17, 99, 123, 124, 125, 126]
    assert any("13 of 128 tokens stay" in note for note in receipt.notes)


def test_a_text_with_another_token_is_refused() -> None:
    model: Any = tiny.build("llama")
    operate(model, "vocabulary", keep_ids=[1, 2, 3])
    model(torch.tensor([[1, 2, 3]]))
    with pytest.raises(RefusedOnOptimized, match="token 4 was left out"):
        model(torch.tensor([[1, 4, 3]]))


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_what_is_saved_comes_back_with_its_tokens(name: str, tmp_path: Path) -> None:
    model: Any = tiny.build(name)
    operate(model, "vocabulary", keep_ids=list(range(FROM, TO)))
    save(model, tmp_path / "saved")
    again: Any = load(tmp_path / "saved")
    given = tiny.inputs(name, again)
    with torch.no_grad():
        assert torch.equal(again(**given).logits, model(**given).logits)


def test_what_cannot_be_is_refused_and_nothing_was_touched() -> None:
    case = Case("qwen3")
    with pytest.raises(InvalidSetting, match="keep_ids holds 128, and this model knows 128"):
        operate(case.model, "vocabulary", keep_ids=[128])
    with pytest.raises(NoEffect, match="all of its 128 tokens are kept"):
        operate(case.model, "vocabulary", keep_ids=list(range(128)))
    with pytest.raises(NoEffect, match="data leave nothing to do for vocabulary"):
        operate(case.model, "vocabulary", text=[list(range(64)), list(range(64, 128))])
    case.check_untouched()


def test_later_steps_learn_from_texts_in_the_same_ids() -> None:
    model: Any = tiny.build("llama")
    operate(model, "vocabulary", keep_ids=[3, 128, 129, 130])
    assert vocab_size(model) == 131
    asked = {"structured_pruning": {"align": 8, "text": [[128, 129, 130, 3] * 16] * 8}}
    ModularOptimizationManager().apply_optimizations(model, ["structured_pruning"], parameters=asked)
    assert model(torch.tensor([[130, 3]])).logits[..., [3, 128, 129, 130]].isfinite().all()


def test_compression_passes_the_ends_over_and_works_on_the_rest() -> None:
    case = Case("qwen3")
    manager = ModularOptimizationManager()
    asked = {"model_surgery": {"edits": ["vocabulary"], "keep_ids": list(range(FROM, TO))}}
    manager.apply_optimizations(case.model, ["model_surgery", "tensor_compression", "kernel_fusion"], parameters=asked)
    model: Any = case.model
    found = model(**tiny.inputs("qwen3", model)).logits
    assert found[..., FROM:TO].isfinite().all()
    assert found[..., TO:].isneginf().all()
    manager.remove_optimizations(model)
    case.check_untouched()


@pytest.mark.parametrize("path", ["model.embed_tokens", "lm_head"])
def test_ends_that_somebody_watches_or_prunes_are_kept_with_the_reason(path: str) -> None:
    watched, pruned = tiny.build("llama"), tiny.build("llama")
    watched.get_submodule(path).register_forward_hook(lambda module, given, result: result * 2)
    with pytest.raises(NoEffect, match="hooks of somebody else"):
        operate(watched, "vocabulary", keep_ids=[1, 2, 3])
    prune.random_unstructured(pruned.get_submodule(path), "weight", 0.5)
    tiny.logits(pruned, "llama")  # the masked weight is a leaf from here on
    with pytest.raises(NoEffect, match="weight of its embedding or head is overridden"):
        operate(pruned, "vocabulary", keep_ids=[1, 2, 3])


def test_where_logits_are_bounded_no_token_can_be_made_impossible() -> None:
    sizes: Any = {"num_hidden_layers": 3, "num_attention_heads": 4, "lru_width": 64, "logits_soft_cap": 30.0}
    config = RecurrentGemmaConfig(vocab_size=128, hidden_size=64, intermediate_size=96, **sizes)
    with pytest.raises(NoEffect, match="logits_soft_cap"):
        operate(RecurrentGemmaForCausalLM(config).eval(), "vocabulary", keep_ids=[1, 2, 3])


def test_ids_that_are_given_are_not_said_to_come_from_a_text() -> None:
    receipt = operate(tiny.build("llama"), "vocabulary", keep_ids=[1, 2, 3])
    assert not any("text that it learns from" in note for note in receipt.notes)
