"""What the parts of each applied optimization have counted while the model ran."""

from __future__ import annotations

from typing import Any

from torch import nn

from inference_pio.contract.registry import OptimizationRegistry
from inference_pio.manager.session import Session


def counted_by(model: nn.Module, session: Session, registry: OptimizationRegistry) -> dict[str, dict[str, Any]]:
    """What each applied optimization reports, by name; one that counts nothing is left out.

    A copy of an optimized model has no optimizations of its own, only receipts: their classes are asked.
    """
    asked = {step.name: step.optimization for step in session.applied}
    for receipt in session.inherited:
        if receipt.name in registry:
            asked[receipt.name] = registry.create(receipt.name, receipt.parameters)
    reports = {name: optimization.report(model) for name, optimization in asked.items()}
    return {name: counted for name, counted in reports.items() if counted}
