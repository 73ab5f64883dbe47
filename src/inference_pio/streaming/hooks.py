"""How a stream hangs on a model: hooks around each layer, true values in a state_dict, refusals of what cannot be."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from inference_pio.anatomy.call_guards import WHY_CALLED
from inference_pio.errors import RefusedOnOptimized
from inference_pio.streaming.expert_slots import ExpertSlots
from inference_pio.streaming.expert_stream import ExpertStream
from inference_pio.streaming.in_slots import compute_in_slots
from inference_pio.streaming.stream import Stream
from inference_pio.undo.journal import Journal

STREAM = "_inference_pio_stream"
"""The attribute under which a model holds its stream."""
WHY = "its layers stream from disk into slots, which recorded steps do not follow"
TAKE_BACK = 'update_model_optimization(model, "disk_offloading", enabled=False)'


@dataclass(frozen=True)
class Forecast:
    """What stands for a stream on a plan's skeleton: the memory that its slots would take."""

    nbytes: int


def hang_on(journal: Journal, model: nn.Module, stream: Stream) -> None:
    """Hang a stream on a model through its journal; its units' tensors are put away already."""
    journal.set(model, STREAM, stream)
    _register(journal, model, "_load_state_dict_pre_hooks", _refuse_loading)
    for number, unit in enumerate(stream.units):
        module, hooks = model.get_submodule(unit.path), _Hooks(stream, number)
        if isinstance(stream, ExpertSlots):
            journal.hook(module, "forward_pre", hooks.refuse, prepend=True)
            compute_in_slots(journal, module, stream, number)
        elif isinstance(stream, ExpertStream):
            journal.hook(module, "forward_pre", hooks.bring, prepend=True, with_kwargs=True)
        else:
            journal.hook(module, "forward_pre", hooks.enter, prepend=True)
        journal.hook(module, "forward", hooks.leave, always_call=True)
        _register(journal, module, "_state_dict_pre_hooks", hooks.before_state_dict)
        _register(journal, module, "_state_dict_hooks", hooks.after_state_dict)
        _register(journal, module, "_load_state_dict_pre_hooks", _refuse_loading)
        journal.set(module, "_apply", types.MethodType(_apply_nothing, module))
    for path in _above([unit.path for unit in stream.units]):
        module = model.get_submodule(path)
        journal.set(module, "_apply", types.MethodType(_apply_checked, module))


def stream_of(model: nn.Module) -> Stream | None:
    """The stream that hangs on a model, if any."""
    found = model.__dict__.get(STREAM)
    return found if isinstance(found, Stream) else None


@contextmanager
def true_values(model: nn.Module) -> Iterator[None]:
    """In here all tensors of a model hold their true values, in as much memory as that takes."""
    stream = stream_of(model)
    if stream is None:
        yield
        return
    opened: list[int] = []
    try:
        for number in range(len(stream.units)):
            stream.open(number)
            opened.append(number)
        yield
    finally:
        for number in opened:
            stream.shut(number)


def slot_bytes_of(model: nn.Module) -> int:
    """Memory that a model's slots take, or would take where it is a skeleton."""
    found = model.__dict__.get(STREAM)
    return found.nbytes if isinstance(found, Stream | Forecast) else 0


class _Hooks:
    """What is called around one layer."""

    def __init__(self, stream: Stream, number: int) -> None:
        self._stream, self._number = stream, number

    @torch.compiler.disable  # type: ignore[misc, untyped-decorator] # threads have no place in a compiled graph
    def enter(self, module: nn.Module, given: Any) -> None:
        _refuse_training(module)
        self._stream.enter(self._number)

    @torch.compiler.disable  # type: ignore[misc, untyped-decorator]
    def refuse(self, module: nn.Module, given: Any) -> None:
        _refuse_training(module)

    @torch.compiler.disable  # type: ignore[misc, untyped-decorator]
    def bring(self, module: nn.Module, given: Any, named: Any) -> None:
        """Before experts compute: which of them a call chose stands in its one tensor of whole numbers."""
        _refuse_training(module)
        tensors = [one for one in (*given, *named.values()) if isinstance(one, torch.Tensor)]
        chosen = [one for one in tensors if not one.dtype.is_floating_point]
        assert isinstance(self._stream, ExpertStream)
        every = range(self._stream.experts[self._number])  # where a call names none, it computes with all
        self._stream.bring(self._number, torch.unique(chosen[0]).tolist() if len(chosen) == 1 else list(every))

    @torch.compiler.disable  # type: ignore[misc, untyped-decorator]
    def leave(self, module: nn.Module, given: Any, out: Any) -> None:
        self._stream.leave(self._number)
        if torch.is_grad_enabled():
            _refuse_backward(out)

    for called in (enter, refuse, bring, leave):
        setattr(called, WHY_CALLED, WHY)

    def before_state_dict(self, module: nn.Module, prefix: str, keep_vars: bool) -> None:
        if keep_vars and not self._stream.is_open(self._number):
            raise RefusedOnOptimized(
                f"{prefix.rstrip('.')} streams from disk, so its Parameters hold no numbers to keep hold of: "
                f"use keep_vars=False, or {TAKE_BACK} first."
            )
        self._stream.open(self._number)

    def after_state_dict(self, module: nn.Module, found: Any, prefix: str, metadata: Any) -> None:
        mine = {id(tensor) for tensor in self._stream.units[self._number].tensors}
        for name, value in found.items():
            if id(value) in mine:  # codes are handed out themselves
                found[name] = value.detach()
        self._stream.shut(self._number)


def _refuse_loading(*given: Any) -> None:
    raise RefusedOnOptimized(
        f"weights cannot be loaded into layers that stream from disk. Nothing was loaded: {TAKE_BACK} first."
    )


def _refuse_backward(out: Any) -> None:
    """A backward pass would multiply with what the weights show then, which is nothing."""

    def refuse(gradient: torch.Tensor) -> None:
        raise RefusedOnOptimized(
            "a backward pass needs the weights of layers that stream from disk, and they are gone by then. "
            f"Compute under torch.no_grad(), or {TAKE_BACK} first."
        )

    for tensor in out if isinstance(out, tuple | list) else (out,):
        if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
            tensor.register_hook(refuse)  # type: ignore[no-untyped-call]


def _refuse_training(module: nn.Module) -> None:
    if module.training and torch.is_grad_enabled():
        raise RefusedOnOptimized(
            "a layer whose weights stream from disk cannot be trained: what it learned would be overwritten. "
            f"{TAKE_BACK} first."
        )


def _apply_nothing(self: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
    """What moves or casts is refused; what leaves weights as they are, such as `.to()` where they are, is let be."""
    _check_unchanged(self, function)
    return self


def _apply_checked(self: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
    """The same for what holds such layers: refused before a part of it has moved."""
    _check_unchanged(self, function)
    return type(self)._apply(self, function, recurse)  # type: ignore[no-untyped-call]


def _check_unchanged(module: nn.Module, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for dtype, device in {(tensor.dtype, tensor.device) for tensor in module.parameters()}:
        made = function(torch.empty(1, dtype=dtype, device=device))
        if (made.dtype, made.device) != (dtype, device):
            raise RefusedOnOptimized(
                f"layers whose weights stream from disk cannot be moved or cast. {TAKE_BACK} first."
            )


def _above(paths: Sequence[str]) -> list[str]:
    """The paths of all that holds these modules, but for the model itself, which has a guard of its own.

    >>> _above(["model.layers.0", "model.layers.1"])
    ['model', 'model.layers']
    """
    names = [path.split(".") for path in paths]
    return sorted({".".join(name[:depth]) for name in names for depth in range(1, len(name))})


def _register(journal: Journal, module: nn.Module, table: str, hook: Callable[..., Any]) -> None:
    hooks = module.__dict__[table]
    journal.register(module, hooks, RemovableHandle(hooks).id, hook)
