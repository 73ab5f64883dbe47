"""The optimizations that ship, registered."""

from __future__ import annotations

from inference_pio.manager import get_optimization_manager
from inference_pio.optimizations import built_in


def register_default_optimizations() -> list[str]:
    """Register all optimizations that ship with the shared manager; those that are registered stay. All names, then.

    They are registered from the start: this brings back what was unregistered.

    >>> "flash_attention" in register_default_optimizations()
    True
    """
    manager = get_optimization_manager()
    for optimization in built_in():
        manager.register_optimization(optimization)
    return manager.get_available_optimizations()
