"""How many of the last hidden states a forward asks its stack for: the others need not be kept beside one another."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from torch import nn

from inference_pio.anatomy.call_guards import put_around
from inference_pio.compat import knows_names
from inference_pio.undo.journal import Journal

KEEP, HEAD = "logits_to_keep", "lm_head"
_LAST: ContextVar[int | None] = ContextVar("last hidden states", default=None)


def ask_for_last_states(journal: Journal, model: nn.Module) -> None:
    """From now on, a forward that makes logits of the last tokens alone says so to its stack; others say nothing."""
    kind: Any = type(model)
    if KEEP in inspect.signature(kind.forward).parameters and knows_names(kind, HEAD):
        put_around(journal, model, _saying_so)


def last_states() -> int | None:
    """How many hidden states the forward that is on its way asks for, from the end; None for all."""
    return _LAST.get()


def _saying_so(self: nn.Module, inner: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    kept = named.get(KEEP)
    only = type(kept) is int and kept > 0 and named.get("labels") is None
    before = _LAST.set(kept if only else None)
    try:
        return inner(self, *given, **named)
    finally:
        _LAST.reset(before)
