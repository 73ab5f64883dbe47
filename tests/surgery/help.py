"""What the tests of single edits share: a model after some of them, and how far answers are apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from inference_pio.contract.receipt import Receipt
from inference_pio.manager import ModularOptimizationManager


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
