"""model_surgery: what loses nothing by default, edits by name, told in the plan and the receipt, beside other steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.artifact import load, save
from inference_pio.errors import InferencePioError, InvalidSetting, NoEffect, RefusedOnOptimized
from inference_pio.manager import ModularOptimizationManager
from tests import tiny
from tests.surgery.help import operate, relative
from tests.sweep import Case

TEXT = [[1 + (place * place + row) % 96 for place in range(16)] for row in range(4)]
ALL_OF = {
    "qwen3_vl": ["patch_linear", "text_only", "norm_folding", "vocabulary", "attention"],
    "qwen3_moe": ["unused_experts", "norm_folding", "vocabulary", "attention"],
    "glm4_moe": ["unused_experts", "vocabulary", "norm_folding", "blocks"],
    "glm4_moe_lite": ["latent_decode", "unused_experts", "norm_folding", "vocabulary", "blocks"],
    "llama": ["norm_folding", "vocabulary", "attention", "blocks"],
}


@pytest.mark.parametrize(("name", "edit"), [("qwen3_vl", "patch_linear"), ("glm4_moe_lite", "latent_decode")])
def test_by_default_only_what_loses_nothing_is_done(name: str, edit: str) -> None:
    case = Case(name)
    ModularOptimizationManager().apply_optimizations(case.model, ["model_surgery"])
    (receipt,) = case.manager.get_receipts(case.model)
    assert list(receipt.decision["edits"]) == [edit]
    assert {site.role for site in receipt.acted} == {edit}
    assert receipt.weight_bytes_before == receipt.weight_bytes_after
    assert relative(tiny.logits(case.model, name), case.logits) <= 1e-5
    assert any(note.startswith(f"{edit} (algebraic): ") for note in receipt.notes)
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "qwen3_moe", "glm4_moe"])
def test_where_nothing_is_to_gain_an_order_is_told_so(name: str) -> None:
    case = Case(name)
    with pytest.raises(NoEffect, match="model_surgery does not apply"):
        ModularOptimizationManager().apply_optimizations(case.model, ["model_surgery"])
    case.check_untouched()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"edits": ["norm_folding"]}, False),
        ({"edits": ["norm_folding"], "text": TEXT}, True),
        ({"edits": ["norm_folding"], "tokens": 64}, True),
        ({"edits": ["vocabulary"], "keep_ids": [1, 2], "text": TEXT}, True),
        ({"edits": ["vocabulary"], "text": TEXT}, False),
    ],
)
def test_a_text_that_no_edit_reads_is_said_aloud(given: dict[str, Any], said: bool) -> None:
    case = Case("llama")
    manager = ModularOptimizationManager()
    manager.apply_optimizations(case.model, ["model_surgery"], parameters={"model_surgery": given})
    (receipt,) = manager.get_receipts(case.model)
    assert any("text and tokens are not read" in note for note in receipt.notes) is said


@pytest.mark.parametrize("name", ALL_OF)
def test_many_edits_at_once_come_off_exactly_and_come_back_from_a_file(name: str, tmp_path: Path) -> None:
    case = Case(name)
    receipt = operate(case.model, *ALL_OF[name], text=TEXT, keep_ids=list(range(1, 120)))
    done = receipt.decision["edits"] | receipt.decision["learned"]
    assert sum(bool(places) for places in done.values()) >= len(ALL_OF[name]) - 1
    given = tiny.inputs(name, case.model)
    with torch.no_grad():
        found = case.model(**given).logits
    assert found[..., 1:120].isfinite().all()
    save(case.model, tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "saved")(**given).logits, found)
    case.manager.remove_optimizations(case.model)
    if name != "qwen3_vl":
        case.check_untouched()


def test_edits_are_made_before_pruning_compression_and_kernels_whatever_the_order() -> None:
    names = ["kernel_fusion", "tensor_compression", "structured_pruning", "flash_attention"]
    case, other = Case("llama"), Case("llama")
    asked: dict[str, Any] = {
        "model_surgery": {"edits": ["attention", "blocks", "norm_folding"], "text": TEXT},
        "structured_pruning": {"align": 8, "allocation": "uniform", "tokens": 256},
    }
    manager = ModularOptimizationManager()
    manager.apply_optimizations(case.model, ["model_surgery", *names], parameters=asked)
    order = manager.get_model_optimizations(case.model)
    assert order[:2] == ["model_surgery", "structured_pruning"]
    manager.apply_optimizations(other.model, names, parameters={names[2]: asked[names[2]]})
    manager.apply_optimizations(other.model, ["model_surgery"], parameters={"model_surgery": asked["model_surgery"]})
    assert sorted(manager.get_model_optimizations(other.model)) == sorted(order)
    assert torch.equal(tiny.logits(other.model, "llama"), tiny.logits(case.model, "llama"))
    for one in (case, other):
        manager.remove_optimizations(one.model, ["model_surgery"])
        manager.remove_optimizations(one.model)
        one.check_untouched()


def test_a_saved_model_of_fewer_layers_keeps_its_other_steps(tmp_path: Path) -> None:
    model = tiny.build("llama")
    asked: dict[str, Any] = {
        "model_surgery": {"edits": ["attention", "blocks"], "text": TEXT},
        "structured_pruning": {"align": 8, "allocation": "uniform", "tokens": 256},
    }
    names = ["model_surgery", "structured_pruning", "tensor_compression"]
    ModularOptimizationManager().apply_optimizations(model, names, parameters=asked)
    save(model, tmp_path / "saved")
    assert torch.equal(tiny.logits(load(tmp_path / "saved"), "llama"), tiny.logits(model, "llama"))


def test_layers_from_disk_follow_surgery() -> None:
    case = Case("llama")
    asked: dict[str, Any] = {
        "model_surgery": {"edits": ["attention", "vocabulary"], "text": TEXT, "keep_ids": list(range(1, 120))},
        "disk_offloading": case.manager.registry.get("disk_offloading").on_small_models,
    }
    manager = ModularOptimizationManager()
    alone = Case("llama")
    manager.apply_optimizations(alone.model, ["model_surgery"], parameters={"model_surgery": asked["model_surgery"]})
    given = tiny.inputs("llama", case.model)
    with torch.no_grad():
        manager.apply_optimizations(case.model, ["model_surgery", "disk_offloading"], parameters=asked)
        assert torch.equal(case.model(**given).logits, alone.model(**given).logits)
    manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.parametrize("asked", [{"edits": ["blocks"], "remove": 0}, {"edits": ["heads"]}, {"remove_blocks": 1}])
def test_settings_without_a_sense_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(InferencePioError):
        operate_with(tiny.build("llama"), asked)


def test_an_edit_that_was_asked_for_and_finds_no_place_is_told() -> None:
    receipt = operate(tiny.build("llama"), "blocks", "text_only", "unused_experts", text=TEXT)
    told = [note for note in receipt.notes if "finds no place of its own" in note]
    assert [note.split()[0] for note in told] == ["text_only", "unused_experts"]


def test_text_of_another_vocabulary_and_too_little_of_it_are_refused_before_any_edit() -> None:
    case = Case("llama")
    for text, told in (([[1, 2], [3, 131]], "another model's tokenizer"), ([[1, 2, 3]], "must be held out")):
        with pytest.raises(InvalidSetting, match=told):
            operate(case.model, "blocks", text=text)
        case.check_untouched()


def operate_with(model: nn.Module, asked: dict[str, Any]) -> None:
    ModularOptimizationManager().apply_optimizations(model, ["model_surgery"], parameters={"model_surgery": asked})


def test_only_edits_that_change_weights_keep_the_library_from_saving(tmp_path: Path) -> None:
    manager = ModularOptimizationManager()
    kept: Any = tiny.build("qwen3_vl")
    manager.apply_optimizations(kept, ["model_surgery"])
    kept.save_pretrained(tmp_path / "kept")
    again = type(kept).from_pretrained(tmp_path / "kept")
    assert relative(tiny.logits(again, "qwen3_vl"), tiny.logits(kept, "qwen3_vl")) <= 1e-5
    cut: Any = tiny.build("llama")
    operate(cut, "blocks", text=TEXT)
    with pytest.raises(RefusedOnOptimized, match="model_surgery changed the weights"):
        cut.save_pretrained(tmp_path / "cut")


@pytest.mark.parametrize(
    ("other", "asked"),
    [
        ("activation_offloading", {"kv_placement": "host"}),
        ("disk_offloading", {}),
        ("sparse_attention", {}),
        ("kernel_fusion", {}),
    ],
)
def test_generate_says_the_same_where_another_step_follows_on_layers_without_attention(
    other: str, asked: dict[str, Any]
) -> None:
    case, alone, manager = Case("llama"), Case("llama"), ModularOptimizationManager()
    settings: dict[str, Any] = {
        "model_surgery": {"edits": ["attention"], "text": TEXT},
        other: {**manager.registry.get(other).on_small_models, **asked},
    }
    manager.apply_optimizations(case.model, ["model_surgery", other], parameters=settings)
    operate(alone.model, "attention", text=TEXT)
    ids = torch.randint(1, 120, (2, 40), generator=torch.Generator().manual_seed(0))
    how: dict[str, Any] = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False}
    assert torch.equal(case.model.generate(ids, **how), alone.model.generate(ids, **how))  # type: ignore[operator]
    manager.remove_optimizations(case.model)
    case.check_untouched()


def test_a_cache_of_codes_serves_layers_without_attention() -> None:
    case, manager = Case("llama"), ModularOptimizationManager()
    settings: dict[str, Any] = {
        "model_surgery": {"edits": ["attention"], "text": TEXT}, "tensor_compression": {"kv_cache": "int8"},
    }  # fmt: skip
    manager.apply_optimizations(case.model, ["model_surgery", "tensor_compression"], parameters=settings)
    ids = torch.randint(1, 120, (2, 80), generator=torch.Generator().manual_seed(0))
    model: Any = case.model
    assert model.generate(ids, max_new_tokens=70, min_new_tokens=70).shape == (2, 150)
    assert model.generate(ids, max_new_tokens=4, num_beams=2).shape[1] > 80
    manager.remove_optimizations(model)
    case.check_untouched()


def test_experts_that_are_left_come_from_disk() -> None:
    case, alone, manager = Case("qwen3_moe"), Case("qwen3_moe"), ModularOptimizationManager()
    settings: dict[str, Any] = {
        "model_surgery": {"edits": ["unused_experts"], "text": [[5, 6] * 8] * 2},
        "disk_offloading": manager.registry.get("disk_offloading").on_small_models,
    }
    manager.apply_optimizations(case.model, ["model_surgery", "disk_offloading"], parameters=settings)
    operate(alone.model, "unused_experts", text=settings["model_surgery"]["text"])
    assert torch.equal(tiny.logits(case.model, "qwen3_moe"), tiny.logits(alone.model, "qwen3_moe"))
    manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.parametrize("edit", ["patch_linear", "text_only", "vocabulary", "attention", "norm_folding"])
def test_what_skip_names_is_left_alone_by_every_edit(edit: str) -> None:
    case = Case("qwen3_vl")
    asked: dict[str, Any] = {"keep_ids": [1, 2, 3]} if edit == "vocabulary" else {"text": TEXT}
    with pytest.raises(NoEffect, match="`skip` names it"):
        operate(case.model, edit, skip=["model*"], **asked)
    case.check_untouched()
