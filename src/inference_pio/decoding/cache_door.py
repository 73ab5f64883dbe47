"""The door by which `generate` makes the cache of a call: ours in the place of the library's, or counted why not."""

from __future__ import annotations

import functools
import types
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import Cache, DynamicCache

from inference_pio.compat import CACHE_ARGUMENT, CACHE_DOOR
from inference_pio.undo.journal import Journal


@dataclass
class CacheCalls:
    """What calls of `generate` are given: `calls` counts those that got it, `left` the others by reason.

    `told` is what a report says of it besides; `layers` are the numbers of those that it is for.
    """

    told: dict[str, Any]
    layers: tuple[int, ...]
    calls: int = 0
    left: Counter[str] = field(default_factory=Counter)

    def __deepcopy__(self, memo: dict[int, Any]) -> CacheCalls:
        return type(self)(dict(self.told), self.layers)

    def make(self, config: Any, but: tuple[int, ...]) -> Cache:
        """A cache for one call."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        return {**self.told, "calls": self.calls, "left_to_the_library": dict(self.left)}


def put_caches(journal: Journal, model: nn.Module, name: str, calls: CacheCalls) -> None:
    """From now on, `model.generate` makes its caches so; the journal gives the library's back. The model holds the
    calls under a name.
    """
    own = model.__dict__.get(CACHE_DOOR)
    kind: Any = type(model)
    bound = own is None or (isinstance(own, types.MethodType) and own.__self__ is model)
    inner: Any = own if not bound else getattr(kind, CACHE_DOOR) if own is None else own.__func__
    journal.set(model, name, calls)
    journal.set(model, CACHE_DOOR, types.MethodType(_through(inner, bound, name), model))


def _through(inner: Any, bound: bool, name: str) -> Callable[..., Any]:
    @functools.wraps(inner)
    def prepare(self: Any, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        given = model_kwargs.get(CACHE_ARGUMENT)
        itself = (self,) if bound else ()  # a function of the user's own knows its model by itself
        made = inner(*itself, generation_config, model_kwargs, *args, **kwargs)
        calls = self.__dict__.get(name)
        if isinstance(calls, CacheCalls):
            _put_ours(calls, self, generation_config, model_kwargs, given)
        return made

    return prepare


def _put_ours(calls: CacheCalls, model: Any, config: Any, arguments: dict[str, Any], given: Any) -> None:
    """Replace the cache that the library made for a call by ours, if it is one that ours can stand in for."""
    if reason := _why_theirs(arguments.get(CACHE_ARGUMENT), given, config):
        calls.left[reason] += 1
        return
    but = tuple(set(range(len(arguments[CACHE_ARGUMENT].layers))) - set(calls.layers))
    cache = arguments[CACHE_ARGUMENT] = calls.make(model.config, but)
    if getattr(config, "is_assistant", False):
        cache.activate_past_recording()
    calls.calls += 1


def _why_theirs(made: Any, given: Any, config: Any) -> str | None:
    if given is not None:
        return f"{CACHE_ARGUMENT} was given"
    if made is None:
        return "the call uses no cache"
    if type(made).__module__.startswith("inference_pio."):
        return f"another optimization makes its cache ({type(made).__name__})"
    if type(made) is not DynamicCache or made.offloading:
        return f"cache_implementation={config.cache_implementation!r} was given"
    return None
