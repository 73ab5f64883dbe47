"""From a target set to an optimized model and back: plan, apply, remove, track."""

from inference_pio.manager.manager import ModularOptimizationManager, get_optimization_manager

__all__ = ["ModularOptimizationManager", "get_optimization_manager"]
