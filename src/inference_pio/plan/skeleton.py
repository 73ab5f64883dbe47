"""The skeleton of a model: its module tree with the shapes of its tensors and none of their bytes."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import TypeVar

import torch
from torch import nn

from inference_pio.errors import InvalidModel
from inference_pio.streaming.hooks import slot_bytes_of
from inference_pio.undo.places import SESSION
from inference_pio.undo.slots import tensors_of
from inference_pio.undo.stored_bytes import stored_bytes

M = TypeVar("M", bound=nn.Module)


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
    """A deep copy. Nine of ten things that one of a module meets are its empty tables of hooks, which take a third of
    the time to copy: they are made anew here.

    >>> bones = skeleton_of(nn.Linear(3, 2))
    >>> twin_of(bones).weight is bones.weight
    False
    """
    memo = {} if memo is None else memo
    for module in bones.modules():
        tables = (value for value in vars(module).values() if type(value) is OrderedDict and not value)
        memo.update((id(table), OrderedDict()) for table in tables)
    return copy.deepcopy(bones, memo)


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        bare = torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device="meta")
    return nn.Parameter(bare, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare


def device_of(model: nn.Module) -> torch.device:
    """Where a model's tensors are; the CPU for a model without any."""
    return next((tensor.device for tensor in tensors_of(model)), torch.device("cpu"))


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, tied ones once, and of slots that they stream through; works on a skeleton
    as on a model.
    """
    return stored_bytes(model) + slot_bytes_of(model)
