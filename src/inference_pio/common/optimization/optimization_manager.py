"""The manager, the registry and the interface, at their documented place."""

from inference_pio.contract.config import OptimizationConfig, OptimizationType
from inference_pio.contract.optimization import OptimizationInterface
from inference_pio.contract.registry import OptimizationRegistry
from inference_pio.manager import ModularOptimizationManager, get_optimization_manager

__all__ = [
    "ModularOptimizationManager",
    "OptimizationConfig",
    "OptimizationInterface",
    "OptimizationRegistry",
    "OptimizationType",
    "get_optimization_manager",
]
