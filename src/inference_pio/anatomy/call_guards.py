"""When a faster forward may stand in for a module's own, and when a module must be called and not read."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from inference_pio.compat import compiled_from, has_global_hooks
from inference_pio.undo.journal import Journal

INSIDE = "_inference_pio_inside"
"""The attribute by which a wrapper of ours tells what stood on the instance before."""
WHY_CALLED = "_inference_pio_why_called"
"""The attribute in which a hook of ours tells why a module must be called, and not stood in for."""


def serves(module: nn.Module, x: torch.Tensor) -> bool:
    """Whether a call is plain inference: no training, no gradients, nothing traced by torch.compile."""
    if module.training or torch.compiler.is_compiling():
        return False
    return not (torch.is_grad_enabled() and (x.requires_grad or _learns(module)))


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def is_watched(module: nn.Module) -> bool:
    """Whether hooks see the calls of a module, so that it must be called.

    >>> is_watched(nn.Linear(2, 2))
    False
    """
    mine = module.__dict__  # written out: this is asked for every layer of every token
    return (
        bool(
            mine["_forward_hooks"]
            or mine["_forward_pre_hooks"]
            or mine["_backward_hooks"]
            or mine["_backward_pre_hooks"]
        )
        or has_global_hooks()
    )


def library_forward(module: nn.Module, *given: Any, **named: Any) -> Any:
    """What the forward of a module's class computes, whatever stands on the module itself."""
    return type(module).forward(module, *given, **named)


def put_forward(journal: Journal, module: nn.Module, forward: Callable[..., Any]) -> None:
    """Let a module compute by another function of it; a bound method follows a deepcopy to the new module."""
    journal.set(module, "forward", types.MethodType(forward, module))


Around = Callable[[nn.Module, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


def put_around(journal: Journal, module: nn.Module, around: Around) -> None:
    """Let a module compute by `around(module, inner, given, named)`: `inner` is what stood there, a function of it."""
    own = module.__dict__.get("forward")
    inner: Any = type(module).forward
    if own is not None:
        bound = isinstance(own, types.MethodType) and own.__self__ is module
        inner = own.__func__ if bound else lambda _module, *given, **named: own(*given, **named)

    @functools.wraps(inner)
    def forward(self: nn.Module, *given: Any, **named: Any) -> Any:
        return around(self, inner, given, named)

    tell_what_is_inside(forward, own)
    put_forward(journal, module, forward)


def tell_what_is_inside(wrapper: Callable[..., Any], own: Any) -> None:
    """Let a method that is put around another of an instance's own tell of it."""
    vars(wrapper).pop(INSIDE, None)  # which it was given by what it was made to look like
    if own is not None:  # not bound: a copy of the model shares the wrapper, and must not hold this one
        vars(wrapper)[INSIDE] = getattr(own, "__func__", own)


def is_foreign(forward: Any) -> bool:
    """Whether a forward, or another method, that stands on an instance is not one of this package's own, or is one that
    stands around such a one."""
    function = getattr(forward, "__func__", forward)
    inside = getattr(function, "__dict__", {}).get(INSIDE)
    if inside is not None and is_foreign(inside):
        return True
    compiled = compiled_from(function)
    if isinstance(compiled, types.MethodType):  # of a method of the class itself: it computes what that does
        return compiled.__func__ is not getattr(type(compiled.__self__), compiled.__name__, None)
    written_in = getattr(function, "__globals__", {}).get("__name__", "")  # a wrapper's own, not that of the wrapped
    return function is not None and not written_in.startswith("inference_pio.")


def computes_by(module: nn.Module, forward: Callable[..., Any]) -> bool:
    """Whether `put_forward` has put this function on a module, and nobody another since."""
    return getattr(module.__dict__.get("forward"), "__func__", None) is forward


def why_not_replaced(module: nn.Module) -> str | None:
    """Why a module's forward is not ours to replace, or None."""
    if "forward" in module.__dict__:
        return "its forward is overridden by somebody else"
    if hasattr(module, "parametrizations"):
        return "its weights are parametrized"
    return None
