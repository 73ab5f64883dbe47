"""Experts that a text never reaches go: its answers are the same bits, and whoever would be sent there is counted."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from inference_pio.anatomy.decoder_mlp import mlp_parts
from inference_pio.artifact import load, save
from inference_pio.errors import NoEffect
from inference_pio.manager import ModularOptimizationManager
from inference_pio.surgery.unused_experts import unserved
from tests import tiny
from tests.surgery.help import operate, relative
from tests.sweep import Case

NAMES = ["qwen3_moe", "glm4_moe", "glm4_moe_lite"]
TEXT = [[5, 6, 5, 6, 5, 6], [6, 5, 6, 5, 6, 5]]
"""So few tokens that some experts get none."""
BLOCK = "model.layers.1.mlp"


def answers(model: Any, rows: Any = TEXT) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor(rows)).logits
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_on_the_text_nothing_changes_and_fewer_experts_are_there(name: str, dtype: torch.dtype) -> None:
    case = Case(name, dtype)
    model: Any = case.model
    wanted, before = answers(model), len(model.get_submodule(BLOCK).experts.gate_up_proj)
    receipt = operate(model, "unused_experts", text=TEXT)
    experts = model.get_submodule(BLOCK).experts
    kept = receipt.decision["learned"]["unused_experts"][BLOCK]["kept"]
    assert len(experts.gate_up_proj) == len(experts.down_proj) == experts.num_experts == len(kept) < before
    assert torch.equal(answers(model), wanted)
    assert ModularOptimizationManager().get_optimization_status(model)
    assert unserved(model) == {}
    assert "knows other experts than there are" in str(mlp_parts(model.get_submodule(BLOCK)))
    case.manager.remove_optimizations(model)
    case.check_untouched()


@pytest.mark.parametrize("name", NAMES)
def test_other_texts_are_served_by_the_others_and_counted(name: str) -> None:
    model: Any = tiny.build(name)
    whole = copy.deepcopy(model)
    receipt = operate(model, "unused_experts", text=TEXT)
    kept = receipt.decision["learned"]["unused_experts"][BLOCK]["kept"]
    router = whole.get_submodule(BLOCK).gate
    chosen: list[torch.Tensor] = []
    router.register_forward_hook(lambda _, given, out: chosen.append(out[2]))
    rows = torch.randint(1, 120, (2, 16), generator=torch.Generator().manual_seed(0)).tolist()
    one = answers(whole, rows)
    assert relative(answers(model, rows), one) < 1.0
    would = torch.bincount(chosen[0].flatten(), minlength=router.weight.shape[0])
    wanted = {str(expert): int(count) for expert, count in enumerate(would) if count and expert not in kept}
    assert wanted
    assert unserved(model)[f"{BLOCK}.gate"] == wanted
    status = ModularOptimizationManager().get_optimization_status(model)
    assert str(wanted) in str(status)


def test_shares_that_would_go_to_none_go_to_the_others_of_the_token() -> None:
    model: Any = tiny.build("qwen3_moe")
    operate(model, "unused_experts", text=TEXT)
    router = model.get_submodule(BLOCK).gate
    plain: Any = tiny.build("qwen3_moe").get_submodule(BLOCK)
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    places = router._buffers["expert_places"]
    _, weights, chosen = plain.gate(x)
    _, found, where = router(x)
    gone = places[chosen] < 0
    assert gone.any()
    assert bool((found[gone] == 0).all())
    assert bool((where == places[chosen].clamp(min=0)).all())
    there = ~gone.all(-1)
    torch.testing.assert_close(found.sum(-1)[there], weights.sum(-1)[there])
    assert bool((found[~there] == 0).all())


def test_what_is_saved_comes_back_without_a_text(tmp_path: Path) -> None:
    model: Any = tiny.build("glm4_moe")
    operate(model, "unused_experts", text=TEXT)
    save(model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert torch.equal(tiny.logits(again, "glm4_moe"), tiny.logits(model, "glm4_moe"))


def test_experts_that_are_all_used_stay_and_a_dense_model_has_none() -> None:
    case = Case("qwen3_moe")
    rows = torch.randint(1, 120, (4, 64), generator=torch.Generator().manual_seed(0)).tolist()
    with pytest.raises(NoEffect, match="data leave nothing to do for unused_experts"):
        operate(case.model, "unused_experts", text=rows)
    case.check_untouched()
    with pytest.raises(NoEffect):
        operate(tiny.build("llama"), "unused_experts", text=TEXT)


@pytest.mark.parametrize("other", ["tensor_compression", "structured_pruning", "kernel_fusion", "flash_attention"])
def test_other_steps_work_on_the_experts_that_are_left(other: str) -> None:
    case = Case("qwen3_moe")
    manager = ModularOptimizationManager()
    asked: dict[str, Any] = {"model_surgery": {"edits": ["unused_experts"], "text": TEXT}}
    if other == "structured_pruning":
        asked[other] = {"align": 8, "units": ["expert_width"], "allocation": "uniform", "tokens": 512}
    wanted = answers(case.model)
    manager.apply_optimizations(case.model, ["model_surgery", other], parameters=asked)
    assert relative(answers(case.model), wanted) < 0.7
    manager.remove_optimizations(case.model)
    case.check_untouched()
