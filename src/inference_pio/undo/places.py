"""Names for the places of a model: which path an object has, and which objects are the model's configurations."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterator
from types import NoneType

from torch import nn

from inference_pio.compat import is_config
from inference_pio.undo.module_walk import named_modules_of
from inference_pio.undo.slots import Slot

SESSION = "_inference_pio"
"""The one private attribute that an optimized model carries."""


NEVER = frozenset({dict, OrderedDict, set, bool, int, float, str, NoneType})
"""What nearly all attributes of a module are, and no configuration is."""


class Places:
    """Paths of the modules and configurations of one model, as they are now; `learn_child` follows an edit."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self._paths: dict[int, str] = {}
        self._parents: dict[int, dict[tuple[int, str], nn.Module]] = {}
        self.learn("", root)
        for name, config in configs_of(root):
            self._paths.setdefault(id(config), name)

    def learn(self, path: str, module: nn.Module) -> None:
        """Note a module that now stands at a path, and all below it."""
        self._paths.setdefault(id(module), path)
        for name, child in module._modules.items():
            if child is not None:
                self.learn_child(module, name, child)

    def learn_child(self, parent: nn.Module, name: str, child: nn.Module) -> None:
        """Note a child that its parent now holds under a name."""
        known = id(child) in self._parents
        self._parents.setdefault(id(child), {})[id(parent), name] = parent
        if not known:
            self.learn(".".join(filter(None, (self._paths.get(id(parent), ""), name))), child)

    def path(self, owner: object) -> str:
        """The path of a module or configuration; an object the model does not hold gets a name of its own."""
        return self._paths.get(id(owner), f"<{type(owner).__name__} at {id(owner):#x}>")

    def parents(self, module: nn.Module) -> list[tuple[nn.Module, str]]:
        """Every parent that holds this module now, with the name it has there."""
        found = self._parents.get(id(module), {}).items()
        return [(parent, name) for (_, name), parent in found if parent._modules.get(name) is module]


def configs_of(root: nn.Module) -> Iterator[tuple[str, object]]:
    """The configuration objects of a model, inner ones included, each once, with a name."""
    seen: set[int] = set()
    found: list[tuple[str, object]] = []
    for path, module in named_modules_of(root):
        found += _configs_in(module, f"{path}." if path else "", seen)
    for name, config in found:  # grows while it is walked
        yield name, config
        found += _configs_in(config, f"{name}.", seen)


def config_at(root: nn.Module, name: str) -> object:
    """The configuration that a name of `configs_of` means, also where modules share one that held their own before: so
    it is in a model that is rebuilt without the layers that went.
    """
    return functools.reduce(getattr, name.split("."), root)


def _configs_in(owner: object, prefix: str, seen: set[int]) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    if NEVER.issuperset(map(type, vars(owner).values())):
        return found
    for key, value in vars(owner).items():
        if type(value) not in NEVER and hasattr(value, "__dict__") and id(value) not in seen and is_config(value):
            seen.add(id(value))
            found.append((prefix + key, value))
    return found


def chain(path: str) -> set[Slot]:
    """The slots one passes through on the way from the root to a path."""
    names = path.split(".") if path and not path.startswith("<") else []
    return {Slot(".".join(names[:depth]), "module", name) for depth, name in enumerate(names)}
