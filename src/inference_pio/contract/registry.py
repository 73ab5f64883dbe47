"""The registry: which optimizations there are, asked by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

import torch

from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage
from inference_pio.contract.settings import Settings
from inference_pio.errors import InvalidSetting, UnknownName

ENTRY_POINTS = "inference_pio.optimizations"


class OptimizationRegistry:
    """Classes of optimizations by name; makes instances with checked parameters."""

    def __init__(self) -> None:
        self._classes: dict[str, type[OptimizationInterface]] = {}

    def register(self, cls: type[OptimizationInterface]) -> type[OptimizationInterface]:
        """Add a class (usable as a decorator). Raises InvalidSetting for a class that breaks the contract."""
        _check(cls)
        known = self._classes.get(cls.name)
        if known is not None and known is not cls:
            raise InvalidSetting(
                f"the name {cls.name!r} belongs to {known.__module__}.{known.__qualname__} already: choose another."
            )
        self._classes[cls.name] = cls
        return cls

    def unregister(self, name: str) -> None:
        """Forget a class; models that it is applied to keep it."""
        self.get(name)
        del self._classes[name]

    def load_entry_points(self) -> None:
        """Register what other installed packages offer; a package that fails to import is an error, not a gap."""
        for entry in entry_points(group=ENTRY_POINTS):
            self.register(entry.load())

    def get(self, name: str) -> type[OptimizationInterface]:
        """The class of a name. Raises UnknownName with the nearest known names."""
        if not isinstance(name, str) or name not in self._classes:
            raise UnknownName("optimization", name, self._classes)
        return self._classes[name]

    def create(
        self, name: str, parameters: Mapping[str, Any] | None = None, device: torch.device | None = None
    ) -> OptimizationInterface:
        """An instance with checked parameters, for a model on a device (the CPU if none is named)."""
        optimization = self.get(name)(parameters)
        if device is not None:
            optimization.device = device
        return optimization

    def names(self) -> list[str]:
        return sorted(self._classes)

    def __iter__(self) -> Iterator[type[OptimizationInterface]]:
        return iter([self._classes[name] for name in self.names()])

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __len__(self) -> int:
        return len(self._classes)


def _check(cls: type[OptimizationInterface]) -> None:
    if not (inspect.isclass(cls) and issubclass(cls, OptimizationInterface)):
        raise InvalidSetting(f"{cls!r} is not a subclass of OptimizationInterface, so it cannot be registered.")
    wanted = {"name": str, "optimization_type": OptimizationType, "stage": Stage}
    for attribute, kind in wanted.items():
        if not isinstance(getattr(cls, attribute, None), kind):
            raise InvalidSetting(f"{cls.__qualname__}.{attribute} must be a {kind.__name__}.")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", cls.name):
        raise InvalidSetting(f"the name {cls.name!r} must be lower case words joined by underscores.")
    if not (inspect.isclass(cls.Parameters) and issubclass(cls.Parameters, Settings)):
        raise InvalidSetting(f"{cls.__qualname__}.Parameters must be a subclass of Settings.")
    if not (isinstance(cls.dependencies, tuple) and all(isinstance(name, str) for name in cls.dependencies)):
        raise InvalidSetting(f"{cls.__qualname__}.dependencies must be a tuple of names.")
    if inspect.isabstract(cls):
        raise InvalidSetting(f"{cls.__qualname__} does not say how to apply: write its `apply(model)`.")
