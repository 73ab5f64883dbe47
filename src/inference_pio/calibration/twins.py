"""A module beside the one it stands in for: the same but for some weights, with hooks of its own."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from inference_pio.anatomy.prunable import Prunable, Weights


def twin_of(module: nn.Module, weights: Weights) -> nn.Module:
    """The same module with other weights and buffers, by their names; what else it holds is shared.

    >>> import torch
    >>> twin = twin_of(nn.Sequential(nn.Linear(2, 2, bias=False)), {"0.weight": torch.ones(3, 2)})
    >>> twin(torch.ones(2)).tolist()
    [2.0, 2.0, 2.0]
    """
    twin = _shallow(module)
    for name, weight in weights.items():
        *above, last = name.split(".")
        owner: Any = twin
        for part in above:
            child = owner._modules[part]
            if child is module.get_submodule(".".join(above[: above.index(part) + 1])):
                child = owner._modules[part] = _shallow(child)
            owner = child
        if last in owner._buffers:
            owner._buffers[last] = weight
            continue
        owner._parameters[last] = nn.Parameter(weight, requires_grad=owner._parameters[last].requires_grad)
    return twin


def pruned_twin(one: Prunable, weights: Weights, width: int) -> nn.Module:
    """What a module is with `width` of its units, its numbers included."""
    twin = twin_of(one.module, weights)
    paths = {id(module): path for path, module in one.module.named_modules()}
    for module, name, value in one.numbers(width):
        owner = twin.get_submodule(paths[id(module)])
        if owner is not module:
            setattr(owner, name, value)
    return twin


def _shallow(module: nn.Module) -> nn.Module:
    """A module with tables of its own: hooks that come to the original later are not the twin's."""
    twin = copy.copy(module)
    for key, value in vars(module).items():
        if isinstance(value, dict):
            vars(twin)[key] = value.copy()
    return twin
