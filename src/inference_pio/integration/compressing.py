"""Weights in fewer bits and nothing else: what an export begins with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from inference_pio.errors import InvalidSetting
from inference_pio.manager import get_optimization_manager

NAME = "tensor_compression"


def compress(model: nn.Module, parameters: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """Compress a model in place, with parameters by name. Raises InvalidSetting for those of another optimization."""
    others = sorted(parameters.keys() - {NAME})
    if others:
        raise InvalidSetting(f"{', '.join(others)} changes nothing that is exported: set {NAME}'s parameters alone.")
    return get_optimization_manager().apply_optimizations(model, [NAME], parameters=dict(parameters))
