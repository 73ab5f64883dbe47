"""A model without its tower says the same of texts, refuses pictures with the reason, and gets it back exactly."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from inference_pio.artifact import load, save
from inference_pio.errors import NoEffect, RefusedOnOptimized
from tests import tiny
from tests.surgery.help import operate
from tests.sweep import Case

NAME = "qwen3_vl"


def test_texts_are_the_same_bits_and_pictures_are_refused() -> None:
    case = Case(NAME)
    model: Any = case.model
    given = tiny.inputs(NAME, model)
    with torch.no_grad():
        wanted = model(**given).logits
        receipt = operate(model, "text_only")
        assert torch.equal(model(**given).logits, wanted)
        tower = sum(parameter.nbytes for parameter in tiny.build(NAME).model.visual.parameters())  # type: ignore[union-attr]
        assert receipt.weight_bytes_before - receipt.weight_bytes_after >= tower
        with pytest.raises(RefusedOnOptimized, match=r"text_only.*sees no pictures.*remove_optimizations"):
            model(**tiny.inputs(NAME, model, image=True))
    copy.deepcopy(model).generate(**given, max_new_tokens=2, do_sample=False)
    case.manager.remove_optimizations(model)
    case.check_untouched()


def test_what_is_saved_comes_back_without_its_tower(tmp_path: Path) -> None:
    model = tiny.build(NAME)
    operate(model, "text_only")
    save(model, tmp_path / "saved")
    again: Any = load(tmp_path / "saved")
    given = tiny.inputs(NAME, again)
    with torch.no_grad():
        assert torch.equal(again(**given).logits, model(**given).logits)
        with pytest.raises(RefusedOnOptimized, match="sees no pictures"):
            again(**tiny.inputs(NAME, again, image=True))


def test_a_model_of_text_has_no_tower_to_lose() -> None:
    with pytest.raises(NoEffect):
        operate(tiny.build("qwen3"), "text_only")
