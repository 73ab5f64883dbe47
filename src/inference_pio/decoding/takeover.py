"""The user's unchanged `model.generate(...)`, led through the engine by the library's own door for custom decoding."""

from __future__ import annotations

import copy
import functools
import inspect
import types
from typing import Any

from torch import nn
from transformers.generation import StoppingCriteriaList, StopStringCriteria

from inference_pio.decoding.engine import Engine
from inference_pio.decoding.prepare import Asked, why_not_this_call
from inference_pio.undo.journal import Journal

ENGINE = "_inference_pio_engine"
"""The attribute under which a model holds its engine."""


def take_over(journal: Journal, model: nn.Module, engine: Engine) -> None:
    """From now on, `model.generate` decodes through the engine; the journal gives it back."""
    own = model.__dict__.get("generate")
    kind: Any = type(model)
    inner = own.__func__ if isinstance(own, types.MethodType) and own.__self__ is model else kind.generate

    signature = inspect.signature(inner)

    @functools.wraps(inner)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _generate(self, inner, dict(signature.bind(self, *args, **kwargs).arguments), args, kwargs)

    del generate.__wrapped__  # type: ignore[attr-defined]
    generate.__signature__ = signature  # type: ignore[attr-defined]
    journal.set(model, ENGINE, engine)
    journal.defer(engine.close)
    journal.set(model, "generate", types.MethodType(generate, model))


def engine_of(model: nn.Module) -> Engine | None:
    """The engine that a model's `generate` goes through, if any."""
    found = model.__dict__.get(ENGINE)
    return found if isinstance(found, Engine) else None


def _generate(
    model: Any, inner: Any, given: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:  # fmt: skip
    """One call of `generate`; the library decodes it where the engine cannot, as if nothing stood between."""
    engine = engine_of(model)
    if engine is None:
        return inner(model, *args, **kwargs)
    given.pop(next(iter(given)))  # the model itself
    given |= given.pop("kwargs", {})
    asked = Asked(given, given.get("generation_config"), getattr(model, "generation_config", None))
    reason = why_not_this_call(asked) or _stop_strings_as_criteria(given, asked)
    if reason is not None:
        engine.counts.left[reason] += 1
        return inner(model, *args, **kwargs)
    given["custom_generate"] = functools.partial(engine.decode, streamer=given.get("streamer"))
    return inner(model, **given)


def _stop_strings_as_criteria(given: dict[str, Any], asked: Asked) -> str | None:
    """Turn strings that end a text into the library's own criterion, since a tokenizer does not come through its door;
    why that cannot be done, or None.
    """
    if asked.stop_strings is None or asked.tokenizer is None:
        return None
    config: Any = given.get("generation_config")
    criterion = StopStringCriteria(tokenizer=asked.tokenizer, stop_strings=asked.stop_strings)
    if given.pop("stop_strings", None) is None:
        if getattr(config, "stop_strings", None) is None:
            return "stop_strings stand in the model's own generation_config"
        given["generation_config"] = config = copy.copy(config)
        config.stop_strings = None
    given["stopping_criteria"] = StoppingCriteriaList([*(given.get("stopping_criteria") or ()), criterion])
    return None
