"""Parts of a decoder told by structure: towers, attention modules, fused experts, adapters, widths."""

from __future__ import annotations

import dis
import functools
import inspect
import itertools
from collections.abc import Iterator
from types import CodeType, FunctionType

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from inference_pio.anatomy.names import (
    ATTENTION_TABLE,
    OTHER_TOWER_CONFIGS,
    VISION_CONFIGS,
    WRAPPED_BY_ADAPTER,
)
from inference_pio.undo.module_walk import Named, named_modules_of


def within(path: str, above: str) -> bool:
    """Whether a path is another one or lies below it.

    >>> within("a.b", "a"), within("ab", "a"), within("a", "")
    (True, False, True)
    """
    return not above or path == above or path.startswith(f"{above}.")


def vision_paths(model: nn.Module, named: Named | None = None) -> list[str]:
    """The paths of a model's vision towers: the outermost modules that are built from a vision configuration.

    `named` are its modules, for who has walked through it already.
    """
    return _tower_paths(model, VISION_CONFIGS, named)


def other_tower_paths(model: nn.Module) -> list[str]:
    """The paths of towers that are neither text nor vision."""
    return _tower_paths(model, OTHER_TOWER_CONFIGS)


def _tower_paths(model: nn.Module, keys: frozenset[str], named: Named | None = None) -> list[str]:
    whole = vars(model).get("config")
    configs = {id(value) for key in keys if (value := getattr(whole, key, None)) is not None}
    found: list[str] = []
    for path, module in named or named_modules_of(model):
        own = vars(module).get("config")
        is_tower = id(own) in configs or getattr(type(own), "base_config_key", None) in keys
        if own is not None and is_tower and not any(within(path, tower) for tower in found):
            found.append(path)
    return found


def runs_attention(module: nn.Module) -> bool:
    """Whether a module runs attention through the library's interface: its code asks the library's table."""
    return _asks_for_attention(type(module))  # type: ignore[arg-type]


@functools.cache
def _asks_for_attention(kind: type[nn.Module]) -> bool:
    if hasattr(kind, "from_pretrained"):  # a whole model, which knows the table for other reasons
        return False
    return any(_mentions(inspect.unwrap(function).__code__, ATTENTION_TABLE) for function in _functions_of(kind))


def reads_weight_of(holder: nn.Module, name: str) -> bool:
    """Whether the code of a module reads the weight of the one that it holds under a name, in place of calling it.

    >>> class Reading(nn.Linear):
    ...     def forward(self, x):
    ...         return self.inner(x.to(self.inner.weight.dtype))
    >>> reads_weight_of(Reading(2, 2), "inner"), reads_weight_of(Reading(2, 2), "other")
    (True, False)
    """
    return name in _read_weights(type(holder))  # type: ignore[arg-type]


@functools.cache
def _read_weights(kind: type[nn.Module]) -> frozenset[str]:
    """The names of which a class's own code reads `.weight`."""
    return frozenset(
        before.argval
        for function in _functions_of(kind)
        for before, after in itertools.pairwise(dis.get_instructions(inspect.unwrap(function)))
        if (before.opname, after.opname, after.argval) == ("LOAD_ATTR", "LOAD_ATTR", "weight")
    )


def _functions_of(kind: type[nn.Module]) -> Iterator[FunctionType]:
    return (value for base in kind.__mro__ for value in vars(base).values() if inspect.isfunction(value))


def carries_hooks(module: nn.Module) -> bool:
    """Whether somebody's hooks are registered on a module itself; another one in its place would not call them."""
    return any(value for key, value in module.__dict__.items() if "_hooks" in key and not key.startswith("_is"))


def _mentions(code: CodeType, name: str) -> bool:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return name in code.co_names or any(_mentions(one, name) for one in inner)


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds 3-D weights of its own, one slice an expert (a convolution's are something else)."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return False
    weights = {name: tensor for name, tensor in weights_of(module).items() if not name.endswith("_scale")}
    stacks = [tensor for tensor in weights.values() if tensor.dim() == 3]
    return bool(stacks) and len({stack.shape[0] for stack in stacks}) == 1 and stacks[0].shape[0] > 1


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that hold a module's own weights: its Parameters, and the buffers of a format of ours, be they kept
    by the module that it is tied to.
    """
    own: dict[str, torch.Tensor] = dict(module.named_parameters(recurse=False))
    if callable(getattr(type(module), "dequantize", None)):
        own |= dict(getattr(module, "holder", module).named_buffers(recurse=False))
    return own


def widths(module: nn.Module) -> tuple[int, int] | None:
    """What a linear-like layer (also an adapted or a compressed one) takes in and gives out; None for others.

    >>> widths(nn.Linear(3, 2)), widths(nn.ReLU())
    ((3, 2), None)
    """
    module = base_of(module)
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return sizes if all(isinstance(size, int) for size in sizes) else None  # type: ignore[return-value]


def is_adapted(module: nn.Module) -> bool:
    """Whether a module is an adapter layer around another layer."""
    return isinstance(module._modules.get(WRAPPED_BY_ADAPTER), nn.Module)


def base_of(module: nn.Module) -> nn.Module:
    """The layer that adapters are wrapped around; the module itself where there are none."""
    while is_adapted(module):
        module = module.get_submodule(WRAPPED_BY_ADAPTER)
    return module
