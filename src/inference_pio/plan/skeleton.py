"""The skeleton of a model: its module tree with the shapes of its tensors and none of their bytes."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from types import BuiltinFunctionType, FunctionType, NoneType
from typing import Any, TypeVar

import torch
from torch import nn

from inference_pio.errors import InvalidModel
from inference_pio.streaming.hooks import slot_bytes_of
from inference_pio.undo.module_walk import modules_of
from inference_pio.undo.parked import View
from inference_pio.undo.places import SESSION
from inference_pio.undo.slots import tensors_of
from inference_pio.undo.stored_bytes import stored_bytes

M = TypeVar("M", bound=nn.Module)
AS_IT_IS = frozenset({NoneType, bool, int, float, str, bytes, torch.dtype, FunctionType, BuiltinFunctionType, type})
"""What a deep copy shares with the first."""
EMPTY = frozenset({dict, OrderedDict, set, list})


def skeleton_of(model: M) -> M:
    """A copy of the module tree on the meta device; ties stay, no weight is copied, the model is not touched.

    >>> skeleton_of(nn.Linear(3, 2)).weight.device.type
    'meta'
    """
    memo: dict[int, object] = {}
    for tensor in tensors_of(model):
        memo.setdefault(id(tensor), _on_meta(tensor))
    if (session := model.__dict__.get(SESSION)) is not None:
        memo[id(session)] = None
    try:
        return twin_of(model, memo)
    except Exception as error:
        raise InvalidModel(
            f"{type(model).__name__} cannot be planned for: its module tree cannot be copied ({error}). "
            "Attributes such as locks, open files or generators must be taken off the model first."
        ) from error


def twin_of(bones: M, memo: dict[int, object] | None = None) -> M:
    """A deep copy, in a third of the time: of all that a module holds, nearly everything is a number, a word, or an
    empty table of hooks, and `copy.deepcopy` takes the way through pickling for each.

    >>> bones = skeleton_of(nn.Linear(3, 2))
    >>> twin_of(bones).weight is bones.weight
    False
    """
    memo = {} if memo is None else memo
    for module in reversed(modules_of(bones)):  # parts first, so that what holds them finds them copied
        kind: Any = type(module)
        if id(module) not in memo and _is_copied_plainly(kind) and "__deepcopy__" not in vars(module):
            twin = kind.__new__(kind)
            memo[id(module)] = twin
            table = twin.__dict__
            for key, value in vars(module).items():
                if (kind := type(value)) in AS_IT_IS:
                    table[key] = value
                elif kind in EMPTY and not value and id(value) not in memo:
                    table[key] = memo[id(value)] = kind()
                else:
                    table[key] = memo[id(value)] if id(value) in memo else copy.deepcopy(value, memo)
    return copy.deepcopy(bones, memo)


@functools.cache
def _is_copied_plainly(kind: Any) -> bool:
    """Whether a class leaves copying to what it inherits from `nn.Module`: attribute by attribute."""
    return not hasattr(kind, "__deepcopy__") and all(
        getattr(kind, way) is getattr(nn.Module, way)
        for way in ("__new__", "__reduce_ex__", "__reduce__", "__getstate__", "__setstate__")
    )


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        bare = torch.empty_strided(tuple(tensor.shape), View.of(tensor).stride, dtype=tensor.dtype, device="meta")
    return nn.Parameter(bare, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare


def device_of(model: nn.Module) -> torch.device:
    """Where a model's tensors are; the CPU for a model without any."""
    return next((tensor.device for tensor in tensors_of(model)), torch.device("cpu"))


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, tied ones once, and of slots that they stream through; works on a skeleton
    as on a model.
    """
    return stored_bytes(model) + slot_bytes_of(model)
