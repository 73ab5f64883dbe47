"""Switch optimizations on and off on a live language model: exactly undoable, never silent, measured step by step.

>>> import inference_pio
>>> inference_pio.optimize
<function optimize at ...>

Names are imported when they are first asked for, so that `import inference_pio` costs next to nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inference_pio import errors
    from inference_pio.artifact import load, save
    from inference_pio.configuration import (
        GlobalOptimizationProfile,
        ModelFamily,
        ModelOptimizationConfig,
        get_config_manager,
    )
    from inference_pio.contract.config import OptimizationConfig, OptimizationType
    from inference_pio.contract.optimization import OptimizationInterface
    from inference_pio.contract.registry import OptimizationRegistry
    from inference_pio.integration import (
        apply_glm_optimizations,
        apply_model_family_optimizations,
        apply_optimizations_by_config,
        apply_qwen_optimizations,
        create_optimization_pipeline,
        get_model_optimization_status,
        get_supported_optimizations,
        load_pretrained,
        optimize,
        optimized,
        plan,
        reset_model_optimizations,
        restore,
        update_model_optimization,
    )
    from inference_pio.manager import ModularOptimizationManager, get_optimization_manager

__version__ = "0.1.0"

__all__ = [
    "GlobalOptimizationProfile",
    "ModelFamily",
    "ModelOptimizationConfig",
    "ModularOptimizationManager",
    "OptimizationConfig",
    "OptimizationInterface",
    "OptimizationRegistry",
    "OptimizationType",
    "apply_glm_optimizations",
    "apply_model_family_optimizations",
    "apply_optimizations_by_config",
    "apply_qwen_optimizations",
    "create_optimization_pipeline",
    "errors",
    "get_config_manager",
    "get_model_optimization_status",
    "get_optimization_manager",
    "get_supported_optimizations",
    "load",
    "load_pretrained",
    "optimize",
    "optimized",
    "plan",
    "reset_model_optimizations",
    "restore",
    "save",
    "update_model_optimization",
]

_ROOMS = {
    "artifact": "load save",
    "configuration": "GlobalOptimizationProfile ModelFamily ModelOptimizationConfig get_config_manager",
    "contract.config": "OptimizationConfig OptimizationType",
    "contract.optimization": "OptimizationInterface",
    "contract.registry": "OptimizationRegistry",
    "integration": """
        apply_glm_optimizations apply_model_family_optimizations apply_optimizations_by_config apply_qwen_optimizations
        create_optimization_pipeline get_model_optimization_status get_supported_optimizations
        load_pretrained optimize optimized plan reset_model_optimizations restore update_model_optimization""",
    "manager": "ModularOptimizationManager get_optimization_manager",
}
_WHERE = {name: room for room, names in _ROOMS.items() for name in names.split()}
_NAME = "inference_pio"


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module(f"{_NAME}.errors")
    if name not in _WHERE:
        raise AttributeError(f"module {_NAME!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f"{_NAME}.{_WHERE[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Face(ModuleType):
    """This package as a module on which `plan` stays the function: importing the room of that name does not hide it."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


class _SecondRoot(MetaPathFinder, Loader):
    """Answers for `src.inference_pio.x` with the module `inference_pio.x`: two names, one registry, one set of classes.

    `src.inference_pio` is what the package is called from the repository's root.
    """

    def __init__(self, root: str) -> None:
        self._root = root

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith(f"{self._root}.") or importlib.util.find_spec(self._real(name)) is None:
            return None
        return ModuleSpec(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._real(spec.name))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has run under its real name; only the spec, which the import system has just overwritten, comes back."""
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state

    def _real(self, name: str) -> str:
        return _NAME + name.removeprefix(self._root)


def _become_one_with(root: str) -> None:
    """Make `root` another name of the one package, which is loaded from this very file if nobody has loaded it yet."""
    if _NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(_NAME, __file__, submodule_search_locations=__path__)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[_NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[_NAME])
    sys.modules[root] = sys.modules[_NAME]
    sys.meta_path.insert(0, _SecondRoot(root))


if __name__ == _NAME:
    sys.modules[_NAME].__class__ = _Face
else:
    _become_one_with(__name__)
