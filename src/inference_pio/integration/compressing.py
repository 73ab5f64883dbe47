"""Weights in fewer bits, or fewer weights, and nothing else: what an export begins with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from inference_pio.errors import InvalidSetting
from inference_pio.manager import get_optimization_manager

FEWER_BITS, FEWER_WEIGHTS = "tensor_compression", "structured_pruning"
Parameters = Mapping[str, Mapping[str, Any]]


def compress(model: nn.Module, parameters: Parameters) -> nn.Module:
    """Compress a model in place, with parameters by name. Raises InvalidSetting for those of another optimization."""
    return _alone(model, FEWER_BITS, parameters)


def prune(model: nn.Module, parameters: Parameters) -> nn.Module:
    """Prune a model in place, as much of each layer, so that its class can be built so. Raises as `compress` does."""
    return _alone(model, FEWER_WEIGHTS, parameters, allocation="uniform")


def _alone(model: nn.Module, name: str, parameters: Parameters, **defaults: Any) -> nn.Module:
    if others := sorted(parameters.keys() - {name}):
        raise InvalidSetting(f"{', '.join(others)} changes nothing that is exported: set {name}'s parameters alone.")
    given = {name: {**defaults, **parameters.get(name, {})}}
    return get_optimization_manager().apply_optimizations(model, [name], parameters=given)
