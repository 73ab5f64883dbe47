"""The optimizations: one file each, found by walking this package, so that a new one edits no list."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from inference_pio.contract.optimization import OptimizationInterface
from inference_pio.contract.registry import OptimizationRegistry


def built_in() -> OptimizationRegistry:
    """A registry of all optimizations below this package and of those that other packages offer.

    A module that fails to import raises here: an optimization never vanishes in silence.
    """
    registry = OptimizationRegistry()
    for found in pkgutil.walk_packages(__path__, prefix=f"{__name__}."):
        module = importlib.import_module(found.name)
        for _, cls in inspect.getmembers(module, inspect.isclass):
            is_own = cls.__module__ == module.__name__ and not inspect.isabstract(cls)
            if is_own and issubclass(cls, OptimizationInterface):
                registry.register(cls)
    registry.load_entry_points()
    return registry
