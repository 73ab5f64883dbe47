"""tensor_compression in exponent12: the same answers to the bit, each skip with its reason, exact undo and files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.artifact import load, save
from inference_pio.errors import InvalidModel, InvalidSetting, NoEffect
from inference_pio.formats.compressed_module import CompressedModule
from inference_pio.manager import ModularOptimizationManager
from tests import tiny
from tests.optimizations.memory.test_tensor_compression import CALIBRATED, plan_of, reasons
from tests.sweep import Case

LOSSLESS: dict[str, Any] = {"format": "exponent12"}
HOW = {"parameters": {"tensor_compression": LOSSLESS}}
NAMES = [name for name in tiny.TINY if name != "gpt2"]
"""Every tiny model but the one whose layers are all Conv1D."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keep", ["host", "disk", "device"])
def test_answers_are_the_same_to_the_bit_and_so_is_the_undone_model(name: str, keep: str) -> None:
    case = Case(name, torch.bfloat16)
    assert case.apply("tensor_compression", **HOW, keep_originals=keep)
    receipt = case.manager.get_receipts(case.model)[0]
    assert any(isinstance(module, CompressedModule) for module in case.model.modules())
    assert torch.equal(tiny.logits(case.model, name), case.logits)
    assert receipt.weight_bytes_after < receipt.weight_bytes_before
    assert "exponent12 holds every bit of the weights: what is computed with them is what it was." in receipt.notes
    assert any("memory is saved, time is not" in note for note in receipt.notes)
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "glm4_moe_lite"])
def test_a_saved_model_gives_the_same_bits_and_is_optimized_anew_from_its_original(name: str, tmp_path: Path) -> None:
    case = Case(name, torch.bfloat16)
    case.model.save_pretrained(tmp_path / "original")
    case.apply("tensor_compression", **HOW)
    save(case.model, tmp_path / "saved")
    assert torch.equal(tiny.logits(load(tmp_path / "saved"), name), case.logits)
    again = load(tmp_path / "saved", checkpoint=tmp_path / "original")
    assert torch.equal(tiny.logits(again, name), case.logits)


def test_what_is_not_bfloat16_is_left_with_the_reason() -> None:
    with pytest.raises(NoEffect, match="its weights are float32: exponent12 is for bfloat16"):
        plan_of(tiny.build("llama"), **LOSSLESS)
    mixed = tiny.build("llama", torch.bfloat16)
    mixed.model.layers[0].mlp.up_proj.half()
    told = reasons(mixed, **LOSSLESS)
    assert told["model.layers.0.mlp.up_proj"] == "its weights are float16: exponent12 is for bfloat16"
    assert told["model.layers.0.mlp.gate_proj"] is None
    assert told["model.layers.0.mlp.down_proj"] == "its 100 inputs are no multiple of 16"


def test_a_layer_of_too_many_exponents_is_left_when_its_values_are_seen() -> None:
    case = Case("qwen3_moe", torch.bfloat16)
    with torch.no_grad():
        case.model.model.layers[1].mlp.experts.down_proj[:, :, ::8] *= 2.0**-40
    logits = tiny.logits(case.model, "qwen3_moe")
    assert reasons(case.model, **LOSSLESS)["model.layers.1.mlp.experts"] is None  # a plan sees no values
    case.apply("tensor_compression", **HOW)
    receipt = case.manager.get_receipts(case.model)[0]
    told = {site.path: site.skip for site in receipt.sites}
    assert re.match(r"4\.2% of its weights have exponents below", str(told["model.layers.1.mlp.experts"]))
    assert not isinstance(case.model.model.layers[1].mlp.experts, CompressedModule)
    assert torch.equal(tiny.logits(case.model, "qwen3_moe"), logits)


def test_numbers_that_are_none_are_refused_though_they_could_be_held() -> None:
    case = Case("llama", torch.bfloat16)
    with torch.no_grad():
        case.model.model.layers[2].mlp.up_proj.weight[3, 5] = float("nan")
    with pytest.raises(InvalidModel, match=r"up_proj\.weight holds NaN.*exponent12 form"):
        case.manager.apply_optimizations(case.model, ["tensor_compression"], **HOW)


def test_a_head_may_be_held_exactly_beside_calibrated_layers() -> None:
    case = Case("llama", torch.bfloat16)
    case.apply("tensor_compression", parameters={"tensor_compression": {**CALIBRATED, "head": "exponent12"}})
    assert case.model.lm_head.format == "exponent12"
    assert case.model.model.layers[0].mlp.up_proj.format == "int4"
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


def test_there_is_nothing_to_calibrate() -> None:
    with pytest.raises(InvalidSetting, match="exponent12 rounds nothing, so there is nothing to calibrate"):
        plan_of(tiny.build("llama", torch.bfloat16), **{**CALIBRATED, "format": "exponent12", "group_size": None})


def test_a_model_of_conv1d_is_refused() -> None:
    with pytest.raises(NoEffect, match="a Conv1D multiplies in another order"):
        plan_of(tiny.build("gpt2", torch.bfloat16), **LOSSLESS)


@pytest.mark.parametrize("other", ["flash_attention", "kernel_fusion"])
@pytest.mark.parametrize("first_out", [0, 1])
def test_it_comes_off_in_any_order(other: str, first_out: int) -> None:
    case, alone = Case("qwen3", torch.bfloat16), Case("qwen3", torch.bfloat16)
    pair = ("tensor_compression", other)
    assert case.apply(*pair, **HOW)
    first, second = pair[first_out], pair[1 - first_out]
    case.manager.remove_optimizations(case.model, [first])
    assert alone.apply(second, **(HOW if second == "tensor_compression" else {}))
    assert torch.equal(tiny.logits(case.model, "qwen3"), tiny.logits(alone.model, "qwen3"))
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in NAMES if name != "plain"])
def test_answers_are_the_same_to_the_bit_on_a_gpu(name: str) -> None:
    model: nn.Module = tiny.build(name, dtype=torch.bfloat16).cuda()
    before, manager = tiny.logits(model, name), ModularOptimizationManager()
    manager.apply_optimizations(model, ["tensor_compression"], **HOW)  # type: ignore[arg-type]
    assert torch.equal(tiny.logits(model, name), before)
