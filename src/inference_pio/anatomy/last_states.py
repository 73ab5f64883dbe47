"""How many of the last hidden states a forward asks its stack for: the others need not be kept beside one another."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from torch import nn

from inference_pio.anatomy.call_guards import is_foreign, is_watched, put_around
from inference_pio.anatomy.walk import down_to
from inference_pio.compat import knows_names
from inference_pio.undo.journal import Journal

KEEP, HEAD = "logits_to_keep", "lm_head"
_LAST: ContextVar[tuple[nn.Module, int] | None] = ContextVar("last hidden states", default=None)


def ask_for_last_states(journal: Journal, model: nn.Module) -> None:
    """From now on, a forward that makes logits of the last tokens alone says so to its stack; others say nothing."""
    kind: Any = type(model)
    if KEEP in inspect.signature(kind.forward).parameters and knows_names(kind, HEAD):
        put_around(journal, model, _saying_so)


def last_states(stack: nn.Module) -> int | None:
    """How many hidden states the forward that is on its way asks this stack for, from the end; None for all, which
    whoever watches the stack, or a module that hands its states on, is to see.
    """
    asked = _LAST.get()
    if asked is None:
        return None
    model, kept = asked
    path = next((path for path, module in model.named_modules() if module is stack), None)
    if path is None:  # another model's, called on the way
        return None
    return None if any(_is_seen(module) for module in down_to(model, path)) else kept


def _is_seen(module: nn.Module) -> bool:
    return is_watched(module) or is_foreign(module.__dict__.get("forward"))


def _saying_so(self: nn.Module, inner: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    kept = named.get(KEEP)
    asked = None
    if type(kept) is int and kept > 0 and named.get("labels") is None:
        asked = self, kept
    before = _LAST.set(asked)
    try:
        return inner(self, *given, **named)
    finally:
        _LAST.reset(before)
