"""What a recorded step was built on: if any of it is another thing now, the step is built anew."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from torch import Tensor, nn

from inference_pio.anatomy.attention_function import OF_PATTERN
from inference_pio.anatomy.attention_name import pattern_part
from inference_pio.anatomy.call_guards import WHY_CALLED, is_foreign
from inference_pio.anatomy.decoder import Decoder
from inference_pio.compat import attention_name, has_global_hooks

HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def stamp_of(decoder: Decoder | None, model: nn.Module) -> tuple[Any, ...]:
    """All modules of a model and, where its parts are known, their classes, addresses and kinds of their tensors,
    overridden forwards, names of attention functions and what scales them; angles also by how often they were written.

    Every edit of a model moves one of these: a module replaced, a weight rebound or moved, an adapter put around.
    """
    modules = tuple(map(id, model.modules()))
    if decoder is None:
        return modules
    marks = chain.from_iterable(_marks(module) for module in (*decoder.modules(), decoder.rotary))
    return (*modules, *marks, *map(_written, decoder.rotary.buffers()))


def why_not_replaced(model: nn.Module, decoder: Decoder, *, asks_patterns: bool = True) -> str | None:
    """Why the modules of a decoder must be called themselves, or None. Hooks that serve a pattern of attention alone
    count where steps ask it.
    """
    if model.training:
        return "the model is in training mode"
    if has_global_hooks():
        return "hooks on all modules, which a step of our own would not call"
    for module in chain((model,), decoder.modules()):
        own = vars(module)
        for hook in (hook for name in HOOKS for hook in own[name].values()):
            if asks_patterns or not hasattr(hook, OF_PATTERN):
                why = f"{type(module).__name__} carries hooks, which a step of our own would not call"
                return str(getattr(hook, WHY_CALLED, why))
        if is_foreign(own.get("forward")):
            return f"the forward of {type(module).__name__} is overridden"
    return None


def _marks(module: nn.Module) -> Iterator[Any]:
    own = vars(module)
    yield id(module)
    yield id(type(module))
    yield id(own.get("forward"))
    yield own.get("scaling")
    for tensor in chain(own["_parameters"].values(), own["_buffers"].values()):
        if tensor is not None:
            yield tensor.data_ptr()
            yield tensor.dtype
            yield tensor.device
    if "config" in own:
        name = attention_name(own["config"])
        yield name
        yield id(own.get(pattern_part(name or "") or ""))  # the heads of a pattern stand under its name


def _written(tensor: Tensor) -> int:
    """How often a tensor was written to, as far as torch counts it."""
    return 0 if tensor.is_inference() else tensor._version
