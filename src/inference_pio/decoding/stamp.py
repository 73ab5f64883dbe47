"""What a recorded step was built on: if any of it is another thing now, the step is built anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import nn

from inference_pio.anatomy.attention_function import OF_PATTERN
from inference_pio.anatomy.attention_name import pattern_part
from inference_pio.anatomy.call_guards import WHY_CALLED, is_foreign
from inference_pio.anatomy.decoder import Decoder
from inference_pio.anatomy.walk import every_module
from inference_pio.compat import attention_name, has_global_hooks, times_written


@dataclass(frozen=True)
class Stamp:
    """All modules of a model and, where its parts are known, their classes, addresses, sizes and kinds of tensors,
    overridden forwards, epsilons, names of attention functions and what scales them; angles also by how often they were
    written.

    Every edit of a model moves one of these: a module replaced, a weight rebound or moved, an adapter put around.
    """

    modules: list[int]
    parts: tuple[nn.Module, ...]
    """Those whose work a step does, those around them and the one of angles: the same while all modules are."""
    rotary: nn.Module | None
    marks: list[Any]

    def is_of(self, model: nn.Module) -> bool:
        """Whether a model is still what it was."""
        same = self.modules == list(map(id, every_module(model)))
        return same and self.marks == _marks(self.parts, self.rotary)


def stamp_of(decoder: Decoder | None, model: nn.Module) -> Stamp:
    """The stamp of a model as it is now."""
    parts = () if decoder is None else (*decoder.around, *decoder.modules(), decoder.rotary)
    rotary = None if decoder is None else decoder.rotary
    return Stamp(list(map(id, every_module(model))), parts, rotary, _marks(parts, rotary))


def why_not_replaced(
    model: nn.Module, decoder: Decoder, *, asks_patterns: bool = True, parts: Sequence[nn.Module] | None = None
) -> str | None:  # fmt: skip
    """Why the modules of a decoder and those around it must be called themselves, or None. Hooks that serve a pattern
    of attention alone count where steps ask it. `parts` are those modules, if a stamp knows their forwards already.
    """
    if model.training:
        return "the model is in training mode"
    if has_global_hooks():
        return "hooks on all modules, which a step of our own would not call"
    for module in chain((model,), (*decoder.around, *decoder.modules(), decoder.rotary) if parts is None else parts):
        own = module.__dict__
        if own["_forward_hooks"] or own["_forward_pre_hooks"]:
            for hook in chain(own["_forward_hooks"].values(), own["_forward_pre_hooks"].values()):
                if asks_patterns or not hasattr(hook, OF_PATTERN):
                    why = f"{type(module).__name__} carries hooks, which a step of our own would not call"
                    return str(getattr(hook, WHY_CALLED, why))
        if (parts is None or module is model) and is_foreign(own.get("forward")):
            return f"the forward of {type(module).__name__} is overridden"
    return None


def _marks(parts: tuple[nn.Module, ...], rotary: nn.Module | None) -> list[Any]:
    """Written out, as it is asked for every module of every call."""
    marks: list[Any] = []
    for module in parts:
        own = module.__dict__
        marks += (id(module), id(own.get("forward")), module.__class__)
        marks += (own.get("scaling"), own.get("variance_epsilon"), own.get("eps"))
        for tensors in (own["_parameters"], own["_buffers"]):
            for tensor in tensors.values():
                if tensor is not None:
                    marks += (tensor.data_ptr(), tensor.dtype, tensor.device, tensor.shape, tensor.stride())
        if "config" in own:
            name = attention_name(own["config"])
            marks += (name, id(own.get(pattern_part(name or "") or "")))  # heads of a pattern stand under its name
    return marks if rotary is None else [*marks, *map(times_written, rotary.buffers())]
