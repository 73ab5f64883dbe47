"""The proof of an exact undo: everything about a model that an edit could have changed, in one comparable value."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from inference_pio.compat import is_config
from inference_pio.undo.places import SESSION, configs_of
from inference_pio.undo.slots import storage_key
from inference_pio.undo.survey import named_tensors


@dataclass(frozen=True)
class Fingerprint:
    """Hashes of tensor bytes, ids and ties, attributes in their order, hooks, configurations.

    >>> model = nn.Linear(2, 2)
    >>> before = fingerprint(model)
    >>> model.bias.data.add_(1) is not None and fingerprint(model).differences(before)
    ["tensors: 'bias'"]
    """

    tensors: dict[str, tuple[Any, ...]]
    ties: tuple[tuple[str, ...], ...]
    modules: dict[str, tuple[Any, ...]]
    attributes: dict[str, tuple[Any, ...]]
    hooks: dict[str, tuple[Any, ...]]
    configs: dict[str, tuple[Any, ...]]

    def differences(self, other: Fingerprint) -> list[str]:
        """Where two fingerprints differ, by section and name; empty when they are equal."""
        found = []
        for section in fields(self):
            mine, theirs = getattr(self, section.name), getattr(other, section.name)
            if isinstance(mine, dict):
                names = [key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)]
                found += [f"{section.name}: {name!r}" for name in sorted(names)]
                if list(mine) != list(theirs) and not names:
                    found.append(f"{section.name}: order")
            elif mine != theirs:
                found.append(section.name)
        return found


def fingerprint(model: nn.Module) -> Fingerprint:
    """Take a model's fingerprint; the model must not be computing."""
    tensors = dict(named_tensors(model))
    modules = dict(model.named_modules(remove_duplicate=False))
    classes = {type(module): _class(type(module)) for module in modules.values()}
    return Fingerprint(
        tensors={name: _tensor(tensor) for name, tensor in tensors.items()},
        ties=_ties(tensors),
        modules={path: (id(module), classes[type(module)], _tables(module)) for path, module in modules.items()},
        attributes={path: _attributes(module) for path, module in modules.items()},
        hooks={path: found for path, module in modules.items() if (found := _hooks(module))},
        configs={name: (id(config), _content(config)) for name, config in configs_of(model)},
    )


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's bytes in logical order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data if flat.numel() else b"").hexdigest()


def _tensor(tensor: torch.Tensor) -> tuple[Any, ...]:
    place = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), str(tensor.dtype), str(tensor.device))
    grad = (tensor.requires_grad, tensor.is_inference(), id(tensor.grad) if tensor.grad is not None else None)
    return id(tensor), type(tensor), digest(tensor), *place, *grad, _value(vars(tensor))


def _ties(tensors: dict[str, torch.Tensor]) -> tuple[tuple[str, ...], ...]:
    groups: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(storage_key(tensor), []).append(name)
    return tuple(sorted(tuple(names) for names in groups.values() if len(names) > 1))


def _class(kind: type) -> tuple[Any, ...]:
    """A class and what stands in it: an edit of a class would reach other models. A note that `copy` leaves is none."""
    return kind, tuple(sorted((key, id(value)) for key, value in vars(kind).items() if key != "__slotnames__"))


def _tables(module: nn.Module) -> tuple[Any, ...]:
    """The keys of a module's parameters, buffers and children in order, and the containers: others may hold them."""
    tables = (module._parameters, module._buffers, module._modules)
    return tuple((id(table), tuple((key, id(value)) for key, value in table.items())) for table in tables)


def _attributes(module: nn.Module) -> tuple[Any, ...]:
    tables = {"_parameters", "_buffers", "_modules"}
    return tuple(
        (key, id(value) if key == SESSION else _value(value))
        for key, value in module.__dict__.items()
        if key not in tables and "_hooks" not in key
    )


def _hooks(module: nn.Module) -> tuple[Any, ...]:
    tables = {key: value for key, value in module.__dict__.items() if "_hooks" in key and value is not None}
    return tuple(
        (key, id(value), tuple((k, id(v)) for k, v in value.items())) if isinstance(value, dict) else (key, value)
        for key, value in tables.items()
    )


def _value(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bool | tuple | torch.dtype | torch.device):
        return repr(value)
    if isinstance(value, dict):
        return id(value), tuple((repr(key), _value(inner)) for key, inner in value.items())
    if isinstance(value, list | set | frozenset):
        inner = [_value(item) for item in value]
        return id(value), tuple(inner if isinstance(value, list) else sorted(map(repr, inner)))
    if isinstance(value, torch.Tensor):
        return id(value), digest(value)
    ours = type(value).__module__.startswith("inference_pio.")  # the session keeps books about the model
    if hasattr(value, "__dict__") and not (callable(value) or is_config(value) or ours):
        return id(value), _settings(value)
    return id(value)


def _settings(value: Any) -> tuple[Any, ...]:
    """The attributes of a plain object that a module holds, such as a generation configuration."""
    plain = (str, int, float, tuple, list, dict, type(None))
    return tuple((key, repr(inner) if isinstance(inner, plain) else id(inner)) for key, inner in vars(value).items())


def _content(config: Any) -> str:
    plain = {key: value for key, value in vars(config).items() if not is_config(value)}
    return json.dumps(plain, default=repr, sort_keys=False)
