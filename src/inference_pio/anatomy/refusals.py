"""Models that are refused whole, each with the reason and the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import nn

ONE_DEVICE = "load it without device_map, or with device_map={'': device}, so that all of it is on one device."
PRE_QUANTIZED = frozenset({"Int8Params", "Params4bit"})
SHARDED = frozenset({"FullyShardedDataParallel", "FSDPModule"})


def why_refused(model: nn.Module) -> str | None:
    """Why a model is refused, and the way out; None for a model that is taken.

    >>> why_refused(nn.DataParallel(nn.Linear(2, 2)))
    'it is wrapped in DataParallel; pass the model inside: model.module.'
    >>> print(why_refused(nn.Linear(2, 2)))
    None
    """
    return next((reason for check in CHECKS if (reason := check(model)) is not None), None)


def _compiled(model: nn.Module) -> str | None:
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        return (
            "it is the wrapper that torch.compile made; pass the model inside, model._orig_mod, "
            "and compile again afterwards."
        )
    return None


def _parallel_wrapper(model: nn.Module) -> str | None:
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return f"it is wrapped in {type(model).__name__}; pass the model inside: model.module."
    return None


def _scripted(model: nn.Module) -> str | None:
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            return (
                f"{_place(path)} is a TorchScript module, whose code is fixed; pass the Python model it was made from."
            )
    return None


def _sharded(model: nn.Module) -> str | None:
    for path, module in model.named_modules():
        if SHARDED & _class_names(module):
            return (
                f"{_place(path)} is sharded by FSDP over several processes; "
                "optimize the model in one process, without FSDP."
            )
    return None


def _device_map(model: nn.Module) -> str | None:
    devices = sorted({str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()})
    if len(devices) > 1:
        return f"its device_map spreads it over {', '.join(devices)}; {ONE_DEVICE}"
    return None


def _hooked(model: nn.Module) -> str | None:
    for path, module in model.named_modules():
        if (hook := vars(module).get("_hf_hook")) is not None:
            return (
                f"{_place(path)} carries an accelerate hook ({_hook_names(hook)}), which moves weights or activations "
                f"while the model runs; {ONE_DEVICE} accelerate.hooks.remove_hook_from_module(model, recurse=True) "
                "takes hooks off a model that is whole."
            )
    return None


def _hook_names(hook: object) -> str:
    return " and ".join(type(one).__name__ for one in getattr(hook, "hooks", None) or (hook,))


def _not_strided(model: nn.Module) -> str | None:
    for path, tensor in _tensors(model):
        if tensor.layout is not torch.strided:
            return f"{path} is a tensor of layout {tensor.layout}, without a plain storage; make it dense: .to_dense()."
    return None


def _distributed(model: nn.Module) -> str | None:
    for path, tensor in _tensors(model):
        if "DTensor" in _class_names(tensor):
            return (
                f"{path} is a DTensor, spread over several processes (tensor parallel or FSDP); "
                "load the model in one process, without tp_plan."
            )
    return None


def _quantized(model: nn.Module) -> str | None:
    method = getattr(model, "quantization_method", None)
    if method is not None or getattr(model, "hf_quantizer", None) is not None:
        name = str(getattr(method, "value", method) or "a quantizer of transformers")
        return f"it is quantized by {name} already; load the original weights, without quantization_config."
    for path, tensor in _tensors(model):
        known = PRE_QUANTIZED & _class_names(tensor)
        if known or hasattr(tensor, "__tensor_flatten__"):
            name = min(known) if known else type(tensor.data).__name__
            return f"{path} is quantized already ({name}); load the original weights, without quantization."
    return None


def _uninitialized(model: nn.Module) -> str | None:
    for path, tensor in _tensors(model):
        if isinstance(tensor, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
            return f"{path} has no shape yet; run the model once, so that its lazy layers know their sizes."
    return None


def _on_meta(model: nn.Module) -> str | None:
    for path, tensor in _tensors(model):
        if tensor.is_meta:
            return f"{path} is on the meta device and has no values; load the weights first."
    return None


def _on_many_devices(model: nn.Module) -> str | None:
    tensors = [tensor for _, tensor in _tensors(model)]
    devices = sorted({str(tensor.device) for tensor in tensors if tensor.dim() or tensor.device.type != "cpu"})
    if len(devices) > 1:
        return f"its tensors are on {', '.join(devices)}; move all of it to one device: model.to({devices[0]!r})."
    return None


CHECKS: tuple[Callable[[nn.Module], str | None], ...] = (
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


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())


def _class_names(thing: object) -> set[str]:
    """Names of the classes of a module or tensor, also of the tensor in a Parameter; no package need be loaded."""
    data = [type(thing.data)] if isinstance(thing, torch.Tensor) else []
    return {kind.__name__ for base in (type(thing), *data) for kind in base.__mro__}


def _place(path: str) -> str:
    return path or "it"
