"""What the tests of single edits share: a model after some of them, and how far answers are apart."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from inference_pio.contract.receipt import Receipt
from inference_pio.manager import ModularOptimizationManager
from tests import tiny
from tests.sweep import Case


def operate(model: nn.Module, *edits: str, **asked: Any) -> Receipt:
    """Apply edits to a model; what was done."""
    manager = ModularOptimizationManager()
    settings = {"edits": list(edits), **asked}
    manager.apply_optimizations(model, ["model_surgery"], parameters={"model_surgery": settings})
    return manager.get_receipts(model)[-1]


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """How far one is from the other, in parts of its size."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def skips(receipt: Receipt) -> dict[str, str | None]:
    return {site.path: site.skip for site in receipt.sites if not site.acts}


def check_it_generates_and_comes_back(name: str, edit: str, text: Any) -> None:
    """With a cache, without one, with one of fixed length and by beams; then the model is what it was."""
    case = Case(name)
    operate(case.model, edit, text=text)
    assert tiny.logits(case.model, name).isfinite().all()
    given = tiny.inputs(name, case.model)
    how = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    model: Any = copy.deepcopy(case.model)
    greedy = model.generate(**given, **how)
    assert torch.equal(model.generate(**given, **how, use_cache=False), greedy)
    assert torch.equal(model.generate(**given, **how, cache_implementation="static"), greedy)
    assert model.generate(**given, max_new_tokens=4, num_beams=2).shape[0] == len(given["input_ids"])
    case.manager.remove_optimizations(case.model)
    case.check_untouched()
