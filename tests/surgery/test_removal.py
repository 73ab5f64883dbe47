"""Layers and attentions to take out: foretold, chosen by what they cost on held-out text, within a bar, never twice."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from inference_pio.artifact import load, save
from inference_pio.calibration.stream_refit import refit_stream
from inference_pio.errors import InvalidModel, NoEffect, PlanError
from inference_pio.manager import ModularOptimizationManager
from inference_pio.surgery import removal
from inference_pio.surgery.parameters import SurgeryParameters
from inference_pio.surgery.text import SurgeryText
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.surgery.help import operate, skips
from tests.sweep import Case

TEXT = [[1 + (place * place + row) % 96 for place in range(16)] for row in range(8)]

LONG = torch.randint(1, 120, (64, 64), generator=torch.Generator().manual_seed(0)).tolist()


def six_layers() -> Any:
    config = tiny.CONFIGS["llama"]()
    config.num_hidden_layers = 6
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        tiny._fill(model, torch.Generator().manual_seed(0))
        model.model.layers[3].mlp.down_proj.weight.mul_(0.01)
        model.model.layers[3].self_attn.o_proj.weight.mul_(0.01)
        model.model.layers[2].self_attn.o_proj.weight.mul_(0.001)
    return model.eval()


@pytest.mark.parametrize(("edit", "wanted"), [("blocks", "model.layers.3"), ("attention", "model.layers.2")])
def test_what_does_nothing_goes(edit: str, wanted: str) -> None:
    receipt = operate(six_layers(), edit, text=TEXT)
    assert list(receipt.decision["learned"][edit]) == [wanted]
    told = receipt.decision["told"][edit]
    part = wanted if edit == "blocks" else f"{wanted}.self_attn"
    assert min(told["divergences"], key=told["divergences"].get) == part
    assert min(told["influences"], key=told["influences"].get) == part
    assert 0 < told["held_out_divergence"] == told["divergences"][part] < 0.01


@pytest.mark.parametrize("edits", [("blocks",), ("attention",), ("attention", "blocks")])
@pytest.mark.parametrize("refit", [True, False])
def test_what_was_judged_is_what_was_done(edits: tuple[str, ...], refit: bool) -> None:
    model = six_layers()
    text = SurgeryText(copy.deepcopy(model), SurgeryParameters(text=TEXT))
    judge = text.held_out
    receipt = operate(model, *edits, text=TEXT, remove=2, refit=refit)
    told = receipt.decision["told"][edits[0]]["held_out_divergence"]
    assert judge.divergence(model) == pytest.approx(told, rel=1e-4)


SLOW = [pytest.param(edits, marks=pytest.mark.slow) for edits in (("attention",), ("attention", "blocks"))]


@pytest.mark.parametrize("edits", [("blocks",), *SLOW])
def test_what_lies_behind_is_fitted_again_where_that_loses_less(edits: tuple[str, ...], tmp_path: Path) -> None:
    model = six_layers()
    before = fingerprint(model)
    judge = SurgeryText(copy.deepcopy(model), SurgeryParameters(text=LONG)).held_out
    manager = ModularOptimizationManager()
    asked = {"edits": list(edits), "text": LONG, "remove": 2}
    manager.apply_optimizations(model, ["model_surgery"], parameters={"model_surgery": asked})
    (receipt,) = manager.get_receipts(model)
    told = receipt.decision["told"][edits[0]]
    assert told["held_out_divergence"] == min(told["refitted"], told["as_taken_out"])
    assert judge.divergence(model) == pytest.approx(told["held_out_divergence"], rel=1e-3)
    kept = any("linear layers behind are fitted again" in note for note in receipt.notes)
    assert kept == (told["refitted"] < told["as_taken_out"]) == (len(edits) == 1)
    answers = tiny.logits(model, "llama")
    save(model, tmp_path / "saved")
    assert torch.equal(tiny.logits(load(tmp_path / "saved"), "llama"), answers)
    manager.remove_optimizations(model)
    assert before.differences(fingerprint(model)) == []


def test_what_lies_behind_and_is_skipped_keeps_its_weights() -> None:
    model = six_layers()
    linears = {path: one for path, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
    weights = {path: one.weight for path, one in linears.items()}
    receipt = operate(model, "attention", text=LONG[:32], targets=["*.layers.4"], skip=["*.layers.5.mlp"])
    told = receipt.decision["told"]["attention"]
    assert told["refitted"] < told["as_taken_out"]
    changed = {path for path, one in linears.items() if one.weight is not weights[path]}
    assert changed == {"model.layers.4.mlp.down_proj", "model.layers.5.self_attn.o_proj"}


def test_what_was_fitted_for_blocks_stays_where_it_loses_least_beside_attentions_that_go() -> None:
    model = six_layers()
    linears = {path: one for path, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
    weights = {path: one.weight for path, one in linears.items()}
    judge = SurgeryText(copy.deepcopy(model), SurgeryParameters(text=LONG[:16])).held_out
    asked = {"text": LONG[:16], "stray": 0.0}  # a fit to so little text with strays in it would be one to the strays
    receipt = operate(model, "attention", "blocks", targets=["*.layers.2", "*.layers.3"], **asked)
    told = receipt.decision["told"]
    assert told["blocks"]["refitted"] < told["blocks"]["as_taken_out"]
    assert judge.divergence(model) == pytest.approx(told["attention"]["refitted"], rel=1e-3)
    changed = {path.split(".")[2] for path, one in linears.items() if one.weight is not weights[path]}
    assert changed == {"4", "5"}  # fitted behind the attention as well, layer 2 would be among them


def test_a_fit_is_told_of_only_where_there_was_one_and_its_answers_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    receipt = operate(six_layers(), "blocks", text=TEXT, targets=["*.layers.5"])  # nothing lies behind the last layer
    assert "refitted" not in receipt.decision["told"]["blocks"]

    def too_large(*given: Any, **how: Any) -> dict[str, torch.Tensor]:
        return {path: torch.full_like(weight, torch.inf) for path, weight in refit_stream(*given, **how).items()}

    monkeypatch.setattr(removal, "refit_stream", too_large)
    receipt = operate(six_layers(), "blocks", text=TEXT, targets=["*.layers.4"])
    told = receipt.decision["told"]["blocks"]
    assert "refitted" not in told
    assert told["held_out_divergence"] == told["as_taken_out"]
    json.dumps(receipt.decision, allow_nan=False)


def test_what_lies_behind_keeps_its_weights_where_others_lose_more() -> None:
    model = tiny.build("llama")
    weights = {path: module.weight for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    receipt = operate(model, "attention", text=LONG[:16])
    told = receipt.decision["told"]["attention"]
    assert told["held_out_divergence"] == told["as_taken_out"] < told["refitted"]
    assert all(module.weight is weights[path] for path, module in model.named_modules() if path in weights)


def test_both_at_once_take_from_different_layers() -> None:
    receipt = operate(six_layers(), "attention", "blocks", text=TEXT, remove=2)
    taken = {name: set(places) for name, places in receipt.decision["learned"].items()}
    assert [len(places) for places in taken.values()] == [2, 2]
    assert not taken["attention"] & taken["blocks"]
    assert "model.layers.2" in taken["attention"] | taken["blocks"]


def test_a_bar_stops_them_and_a_bar_below_all_is_refused() -> None:
    model = six_layers()
    one = operate(model, "blocks", text=TEXT, remove=4, max_kl=0.02)
    assert list(one.decision["learned"]["blocks"]) == ["model.layers.3"]
    case = Case("llama")
    with pytest.raises(PlanError, match=r"max_kl is 1e-09.*Nothing was touched"):
        operate(case.model, "blocks", text=TEXT, max_kl=1e-9)
    case.check_untouched()


def test_what_cannot_be_judged_is_refused_and_nothing_was_touched() -> None:
    model = six_layers()
    with torch.no_grad():
        model.model.layers[4].mlp.up_proj.weight[3, 3] = float("nan")
    before = fingerprint(model)
    with pytest.raises(InvalidModel, match="with NaN: check the checkpoint"):
        operate(model, "blocks", text=TEXT)
    assert before.differences(fingerprint(model)) == []


def test_a_bar_alone_asks_for_both_and_leaves_what_costs_too_much() -> None:
    model = six_layers()
    manager = ModularOptimizationManager()
    asked = {"max_kl": 0.02, "text": TEXT, "remove": 3, "skip": ["*.layers.2"]}
    manager.apply_optimizations(model, ["model_surgery"], parameters={"model_surgery": asked})
    (receipt,) = manager.get_receipts(model)
    assert list(receipt.decision["learned"]["blocks"]) == ["model.layers.3"]
    assert receipt.decision["learned"]["attention"] == {}
    assert any(note.startswith("attention: nothing goes") for note in receipt.notes)
    case = Case("llama")
    with pytest.raises(NoEffect, match="leave nothing to do for blocks, attention"):
        ModularOptimizationManager().apply_optimizations(
            case.model, ["model_surgery"], parameters={"model_surgery": {"max_kl": 1e-9, "text": TEXT}}
        )
    case.check_untouched()


def test_targets_and_skips_are_kept_to_and_layers_that_must_stay_are_told() -> None:
    receipt = operate(
        six_layers(), "blocks", text=TEXT, targets=["*.layers.0", "*.layers.4", "*.layers.5"], skip=["*.5"]
    )
    assert list(receipt.decision["learned"]["blocks"]) == ["model.layers.4"]
    told = skips(receipt)
    assert "how long a cache is" in str(told["model.layers.0"])
    assert told["model.layers.1"] == "it is not among the targets"
    assert told["model.layers.5"] == "`skip` names it ('*.5')"


def test_a_plan_tells_how_many_go_and_that_data_choose() -> None:
    manager = ModularOptimizationManager()
    model = six_layers()
    wanted = manager.wanted("model_surgery", {"edits": ["blocks"], "remove": 2})
    (step,) = manager.plan(model, [wanted]).steps
    assert list(step.decision["edits"]["blocks"]) == ["model.layers.4", "model.layers.5"]
    assert any("decided when it is applied" in note for note in step.notes)
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    layer = sum(parameter.nbytes for parameter in model.model.layers[1].parameters())
    assert step.weight_bytes_after == sum(parameter.nbytes for parameter in model.parameters()) + buffers - 2 * layer
