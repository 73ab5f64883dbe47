"""Latent attention decodes over its cache as it is, to the last rounding, and only where torch's function attends."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from inference_pio.errors import InvalidModel, NoEffect
from inference_pio.manager import ModularOptimizationManager
from inference_pio.surgery import latent_decode
from tests import tiny
from tests.surgery.help import operate, relative, skips
from tests.sweep import Case

NAME = "glm4_moe_lite"


def test_steps_are_attended_absorbed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(NAME)
    served: list[int] = []
    attend = latent_decode.attend_absorbed

    def counting(module: Any, query: torch.Tensor, *rest: Any, **how: Any) -> torch.Tensor | None:
        out = attend(module, query, *rest, **how)
        if out is not None:
            served.append(query.shape[2])
        return out

    expand, expansions = latent_decode.expanded, [0]

    def expanding(*given: Any) -> Any:
        expansions[0] += 1
        return expand(*given)

    monkeypatch.setattr(latent_decode, "attend_absorbed", counting)
    monkeypatch.setattr(latent_decode, "expanded", expanding)
    receipt = operate(case.model, "latent_decode")
    assert len(receipt.acted) == 2
    found = tiny.logits(case.model, NAME)
    assert served == [1, 1]
    assert expansions == [2]  # of the prompt alone, in two layers
    assert relative(found, case.logits) <= 1e-5


def test_padded_rows_and_generate_say_the_same() -> None:
    plain, ours = tiny.build(NAME), tiny.build(NAME)
    operate(ours, "latent_decode")
    ids = torch.randint(1, 120, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    how = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(ours.generate(ids, **how), plain.generate(ids, **how))  # type: ignore[operator]
    assert torch.equal(copy.deepcopy(ours).generate(ids, **how), plain.generate(ids, **how))  # type: ignore[operator]


def test_another_attention_function_keeps_it_away() -> None:
    model = tiny.build(NAME)
    model.set_attn_implementation("eager")  # type: ignore[operator]
    with pytest.raises(NoEffect, match="runs eager"):
        operate(model, "latent_decode")


def test_where_a_later_stage_offers_the_same_the_plan_gives_it_to_that() -> None:
    model = tiny.build(NAME)
    manager = ModularOptimizationManager()
    asked = {"model_surgery": {"edits": ["latent_decode", "attention"], "text": [[1, 2, 3, 4], [5, 6, 7, 8]]}}
    manager.apply_optimizations(model, ["model_surgery", "flash_attention"], parameters=asked)
    surgery, flash = manager.get_receipts(model)
    first = "model.layers.0.self_attn"
    assert skips(surgery)[first] == "flash_attention, of a later stage, takes 'attention.mla_decode' here"
    assert first not in surgery.decision["edits"]["latent_decode"]
    assert any("decodes absorbed in 1 layers" in note for note in flash.notes)


def test_whichever_comes_first_one_of_them_decodes_and_the_other_is_told() -> None:
    case, manager = Case(NAME), ModularOptimizationManager()
    edits = {"model_surgery": {"edits": ["latent_decode"]}}
    manager.apply_optimizations(case.model, ["model_surgery"], parameters=edits)
    with pytest.raises(NoEffect, match="of a later stage, takes"):
        manager.apply_optimizations(case.model, ["flash_attention"])
    manager.remove_optimizations(case.model)
    manager.apply_optimizations(case.model, ["flash_attention"])
    with pytest.raises(NoEffect, match="of a later stage, takes"):
        manager.apply_optimizations(case.model, ["model_surgery"], parameters=edits)
    assert manager.get_model_optimizations(case.model) == ["flash_attention"]
    manager.remove_optimizations(case.model)
    case.check_untouched()


def test_weights_that_are_nan_are_no_fault_of_the_method() -> None:
    model = tiny.build("glm4_moe_lite")
    with torch.no_grad():
        model.get_submodule("model.layers.0.self_attn.kv_b_proj").get_parameter("weight")[0, 0] = float("nan")
    with pytest.raises(InvalidModel, match="holds NaN or infinity"):
        operate(model, "latent_decode")
