"""Decoder layers whose forward torch compiles, one after another: for models whose parts no kernel of ours knows."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from inference_pio.anatomy.call_guards import computes_by, library_forward, serves, why_not_replaced
from inference_pio.anatomy.layer_lists import listed_layers
from inference_pio.compat import compile_errors

COMPILER = "inductor"

_compiled: weakref.WeakKeyDictionary[nn.Module, Callable[..., Any]] = weakref.WeakKeyDictionary()
_failed: dict[type[nn.Module], str] = {}


def compiled_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, str | None]]:
    """The layers of every list that are alike and hold attention: path, module, and why one is passed over, or None.

    >>> list(compiled_layers(nn.Sequential(nn.Linear(2, 2))))
    []
    """
    for path, layer, in_vision in listed_layers(model):
        vision = "the vision tower is kept" if in_vision else None
        yield path, layer, vision or why_not_replaced(layer)


def compiled_forward(self: nn.Module, *given: Any, **named: Any) -> Any:
    """The forward of a layer as torch compiles it; the library's own while it trains, and if compiling fails."""
    first = next((value for value in (*given, *named.values()) if isinstance(value, torch.Tensor)), None)
    kind: Any = type(self)
    if first is None or kind in _failed or not serves(self, first):
        return library_forward(self, *given, **named)
    forward = _compiled.get(self)
    if forward is None:
        # whole or not at all: what failed behind a break would be computed twice, and a cache written twice
        own = _of_its_own(kind.forward)
        forward = _compiled[self] = torch.compile(own, dynamic=True, fullgraph=True, backend=COMPILER)
    try:
        return forward(self, *given, **named)
    except compile_errors() as error:
        _failed[kind] = " ".join(str(error).split("\n\n")[0].split())
        return library_forward(self, *given, **named)


def has_compiled_layers(stack: nn.Module) -> bool:
    """Whether any part of a stack computes so.

    >>> has_compiled_layers(nn.Sequential(nn.Linear(2, 2)))
    False
    """
    return any(computes_by(module, compiled_forward) for module in stack.modules())


def _of_its_own(function: Any) -> Any:
    """The same function with code of its own: torch keeps eight forms of one, and decoders have more layers."""
    copied = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


def why_it_failed(model: nn.Module) -> dict[str, str]:
    """By class: why layers of a model were not compiled after all."""
    return {
        kind.__name__: reason for kind, reason in _failed.items() if any(type(one) is kind for one in model.modules())
    }
