"""Guards on an optimized model's ordinary calls: readers are counted, and what would break the way back is refused."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from inference_pio.anatomy.call_guards import tell_what_is_inside
from inference_pio.errors import RefusedOnOptimized
from inference_pio.manager.session import session_of
from inference_pio.undo.configs import put_back_at_the_end
from inference_pio.undo.journal import Journal
from inference_pio.undo.slots import tensors_of

Around = Callable[[nn.Module, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


def install_guards(journal: Journal, model: nn.Module) -> None:
    """Guard `forward`, `generate`, `save_pretrained` and the calls that move or cast a model."""
    guards: dict[str, Around] = {
        "forward": _read, "generate": _read, "save_pretrained": _save, "load_state_dict": _fill, "_apply": _move,
    }  # fmt: skip
    for name, around in guards.items():
        if callable(getattr(model, name, None)):
            journal.set(model, name, _guarded(model, name, around))


def _guarded(model: nn.Module, name: str, around: Around) -> types.MethodType:
    """A bound method with the original's name and signature; it holds the model as any bound method does.

    Bound methods follow a deepcopy to the new model, closures over the model would not.
    """
    own = model.__dict__.get(name)
    inner = _of_the_model(model, name, own)

    @functools.wraps(getattr(model, name))
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # a lock has no place in a compiled graph
            return inner(self, *args, **kwargs)
        return around(self, inner, args, kwargs)

    del call.__wrapped__  # type: ignore[attr-defined]
    tell_what_is_inside(call, own)
    signature = inspect.signature(getattr(model, name))
    me = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [p.replace(kind=p.kind) for p in signature.parameters.values()]
    call.__signature__ = signature.replace(parameters=[me, *parameters])  # type: ignore[attr-defined]
    return types.MethodType(call, model)


def _of_the_model(model: nn.Module, name: str, own: Callable[..., Any] | None) -> Callable[..., Any]:
    """What stood there as a function of the model: a method of the user's own must follow a deepcopy as well."""
    if own is None:
        return getattr(type(model), name)  # type: ignore[no-any-return]
    if isinstance(own, types.MethodType) and own.__self__ is model:
        return own.__func__
    return lambda _model, *args, **kwargs: own(*args, **kwargs)


def _read(model: nn.Module, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    session = session_of(model)
    if session is None:
        return inner(model, *args, **kwargs)
    with session.gate.reading():
        return inner(model, *args, **kwargs)


def _save(model: nn.Module, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    session = session_of(model)
    if session is not None and session.changes_state_dict:
        names = ", ".join(receipt.name for receipt in session.receipts if receipt.changes_state_dict)
        raise RefusedOnOptimized(
            f"save_pretrained would write a checkpoint that from_pretrained cannot read: {names} changed the weights. "
            "Use inference_pio.save(model, folder), inference_pio.artifact.export for other readers, or "
            "reset_model_optimizations(model) first."
        )
    with put_back_at_the_end(model):  # the library notes class and dtype in the configuration that it saves
        return inner(model, *args, **kwargs)


def _fill(model: nn.Module, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    session = session_of(model)
    if session is not None and session.skeleton is not None and session.applied:
        given = args[0] if args else kwargs["state_dict"]
        replaced = session.skeleton.state_dict().keys() - model.state_dict().keys()
        if foreign := [name for name in given if name in replaced]:
            raise RefusedOnOptimized(
                f"this state_dict holds original weights ({foreign[0]}, {len(foreign)} in all) that an optimization "
                "stores in another form. Nothing was loaded: reset_model_optimizations(model) first."
            )
    if session is not None:
        session.verdict = None  # it was said of other weights
    return inner(model, *args, **kwargs)


def _move(model: nn.Module, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    session = session_of(model)
    function = args[0] if args else kwargs["fn"]
    if session is None or not session.applied or session.skeleton is None:
        return inner(model, *args, **kwargs)
    device = next(tensors_of(model)).device
    if _would_change(function, {(tensor.dtype, device) for tensor in tensors_of(session.skeleton)}):
        raise RefusedOnOptimized(
            "moving or casting an optimized model would part it from its originals. "
            "reset_model_optimizations(model) first, move or cast it, and apply the optimizations again."
        )
    if _would_change(function, {(tensor.dtype, tensor.device) for tensor in tensors_of(model)}):
        return model  # the model is what is asked for already; only the compressed form's own tensors would change
    return inner(model, *args, **kwargs)


def _would_change(
    function: Callable[[torch.Tensor], torch.Tensor], kinds: set[tuple[torch.dtype, torch.device]]
) -> bool:
    for dtype, device in kinds:
        changed = function(torch.empty(1, dtype=dtype, device=device))
        if (changed.dtype, changed.device) != (dtype, device):
            return True
    return False
