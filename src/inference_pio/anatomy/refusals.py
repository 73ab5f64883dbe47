"""Models that are refused whole, each with the reason and the way out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from inference_pio.undo.module_walk import named_modules_of

ONE_DEVICE = "load it without device_map, or with device_map={'': device}, so that all of it is on one device."
PRE_QUANTIZED = frozenset({"Int8Params", "Params4bit"})
SHARDED = frozenset({"FullyShardedDataParallel", "FSDPModule"})


class _Parts:
    """A model with its modules and tensors, walked through once for all checks: a plan asks them, a status too."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = named_modules_of(model)
        tables = ("_parameters", "_buffers")
        self.tensors = list({id(one): (path, one) for table in tables for path, one in self._held(table)}.values())

    def _held(self, table: str) -> Iterator[tuple[str, torch.Tensor]]:
        for path, module in self.modules:
            for name, tensor in getattr(module, table).items():
                if tensor is not None:
                    yield f"{path}.{name}" if path else name, tensor


def why_refused(model: nn.Module) -> str | None:
    """Why a model is refused, and the way out; None for a model that is taken.

    >>> why_refused(nn.DataParallel(nn.Linear(2, 2)))
    'it is wrapped in DataParallel; pass the model inside: model.module.'
    >>> print(why_refused(nn.Linear(2, 2)))
    None
    """
    parts = _Parts(model)
    return next((reason for check in CHECKS if (reason := check(parts)) is not None), None)


def _compiled(parts: _Parts) -> str | None:
    if isinstance(getattr(parts.model, "_orig_mod", None), nn.Module):
        return (
            "it is the wrapper that torch.compile made; pass the model inside, model._orig_mod, "
            "and compile again afterwards."
        )
    return None


def _parallel_wrapper(parts: _Parts) -> str | None:
    if isinstance(parts.model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return f"it is wrapped in {type(parts.model).__name__}; pass the model inside: model.module."
    return None


def _scripted(parts: _Parts) -> str | None:
    for path, module in parts.modules:
        if isinstance(module, torch.jit.ScriptModule):
            return (
                f"{_place(path)} is a TorchScript module, whose code is fixed; pass the Python model it was made from."
            )
    return None


def _sharded(parts: _Parts) -> str | None:
    for path, module in parts.modules:
        if SHARDED & _class_names(module):
            return (
                f"{_place(path)} is sharded by FSDP over several processes; "
                "optimize the model in one process, without FSDP."
            )
    return None


def _device_map(parts: _Parts) -> str | None:
    devices = sorted({str(device) for device in (getattr(parts.model, "hf_device_map", None) or {}).values()})
    if len(devices) > 1:
        return f"its device_map spreads it over {', '.join(devices)}; {ONE_DEVICE}"
    return None


def _hooked(parts: _Parts) -> str | None:
    for path, module in parts.modules:
        if (hook := vars(module).get("_hf_hook")) is not None:
            return (
                f"{_place(path)} carries an accelerate hook ({_hook_names(hook)}), which moves weights or activations "
                f"while the model runs; {ONE_DEVICE} accelerate.hooks.remove_hook_from_module(model, recurse=True) "
                "takes hooks off a model that is whole."
            )
    return None


def _hook_names(hook: object) -> str:
    return " and ".join(type(one).__name__ for one in getattr(hook, "hooks", None) or (hook,))


def _not_strided(parts: _Parts) -> str | None:
    for path, tensor in parts.tensors:
        if tensor.layout is not torch.strided:
            return f"{path} is a tensor of layout {tensor.layout}, without a plain storage; make it dense: .to_dense()."
    return None


def _distributed(parts: _Parts) -> str | None:
    for path, tensor in parts.tensors:
        if "DTensor" in _class_names(tensor):
            return (
                f"{path} is a DTensor, spread over several processes (tensor parallel or FSDP); "
                "load the model in one process, without tp_plan."
            )
    return None


def _quantized(parts: _Parts) -> str | None:
    method = getattr(parts.model, "quantization_method", None)
    if method is not None or getattr(parts.model, "hf_quantizer", None) is not None:
        name = str(getattr(method, "value", method) or "a quantizer of transformers")
        return f"it is quantized by {name} already; load the original weights, without quantization_config."
    for path, tensor in parts.tensors:
        known = PRE_QUANTIZED & _class_names(tensor)
        if known or hasattr(tensor, "__tensor_flatten__"):
            name = min(known) if known else type(tensor.data).__name__
            return f"{path} is quantized already ({name}); load the original weights, without quantization."
    return None


def _uninitialized(parts: _Parts) -> str | None:
    for path, tensor in parts.tensors:
        if isinstance(tensor, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
            return f"{path} has no shape yet; run the model once, so that its lazy layers know their sizes."
    return None


def _on_meta(parts: _Parts) -> str | None:
    for path, tensor in parts.tensors:
        if tensor.is_meta:
            return f"{path} is on the meta device and has no values; load the weights first."
    return None


def _on_many_devices(parts: _Parts) -> str | None:
    tensors = [tensor for _, tensor in parts.tensors]
    devices = sorted({str(tensor.device) for tensor in tensors if tensor.dim() or tensor.device.type != "cpu"})
    if len(devices) > 1:
        return f"its tensors are on {', '.join(devices)}; move all of it to one device: model.to({devices[0]!r})."
    return None


CHECKS: tuple[Callable[[_Parts], str | None], ...] = (
    _compiled,
    _parallel_wrapper,
    _scripted,
    _sharded,
    _device_map,
    _hooked,
    _distributed,
    _quantized,
    _uninitialized,
    _on_meta,
    _not_strided,
    _on_many_devices,
)


def _class_names(thing: object) -> frozenset[str]:
    """Names of the classes of a module or tensor, also of the tensor in a Parameter; no package need be loaded."""
    kinds: list[Any] = [type(thing), type(thing.data) if isinstance(thing, torch.Tensor) else object]
    return frozenset().union(*map(_names_of, kinds))


@functools.cache
def _names_of(kind: Any) -> frozenset[str]:
    return frozenset(base.__name__ for base in kind.__mro__)


def _place(path: str) -> str:
    return path or "it"
