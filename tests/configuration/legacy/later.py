"""Optimizations that are not there today, as they may be registered one day; and the registry without and with them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import nn

from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage
from inference_pio.contract.registry import OptimizationRegistry
from inference_pio.contract.settings import Settings
from inference_pio.optimizations import built_in
from inference_pio.optimizations.attention.sparse_attention import SparseAttention


class Later(OptimizationInterface):
    """Marks the model, and so applies everywhere."""

    stage = Stage.STRUCTURE
    optimization_type = OptimizationType.MODEL_STRUCTURE

    def apply(self, model: nn.Module) -> nn.Module:
        self.journal.set(model, f"_{self.name}", self.parameters.model_dump())
        return model


class Spiking(Later):
    name = "snn_conversion"


class Adaptive(Later):
    class Wanted(Settings):
        mode: Literal["estimated", "certified"] = "estimated"

    name = "adaptive_sparse_attention"
    optimization_type = OptimizationType.ATTENTION
    Parameters: ClassVar[type[Settings]] = Wanted


class Offloading(Later):
    class Wanted(Settings):
        folder: str | None = None
        max_memory_ratio: float | None = None

    name = "disk_offloading"
    optimization_type = OptimizationType.MEMORY
    Parameters: ClassVar[type[Settings]] = Wanted


class Pruning(Later):
    class Wanted(Settings):
        pruning_ratio: float = 0.1

    name = "structured_pruning"
    optimization_type = OptimizationType.COMPUTE
    Parameters: ClassVar[type[Settings]] = Wanted


class Fusion(Later):
    name = "kernel_fusion"
    optimization_type = OptimizationType.COMPUTE


LATER = (Spiking, SparseAttention, Adaptive, Offloading, Pruning, Fusion)


def today() -> OptimizationRegistry:
    """Exactly flash_attention and tensor_compression, whatever else ships by the time this runs."""
    registry = OptimizationRegistry()
    for name in ("flash_attention", "tensor_compression"):
        registry.register(built_in().get(name))
    return registry


def one_day(*classes: Any) -> OptimizationRegistry:
    """The same and those classes, or all that are here."""
    registry = today()
    for cls in classes or LATER:
        registry.register(cls)
    return registry
