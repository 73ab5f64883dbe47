"""The layers of a decoder's stack, one by one: which may go, or lose their attention, and why others may not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from inference_pio.anatomy.decoder_stack import decoder_stack
from inference_pio.anatomy.walk import attention_modules, parent_of, path_of

DEEP_PICTURES = "deepstack_visual_indexes"
"""What a vision configuration counts by: the features of so many of its layers enter the first text layers."""
SHARED_CACHE = "num_kv_shared_layers"


@dataclass(frozen=True)
class StackLayer:
    """A layer at `path`, the `number`-th of its stack, with the name of its attention; `kept` says why it must stay."""

    path: str
    number: int
    module: nn.Module
    attention: str
    kept: str | None

    @property
    def attention_path(self) -> str:
        return f"{self.path}.{self.attention}"


def stack_layers(model: nn.Module) -> list[StackLayer] | str:
    """The layers of a model's decoder in their order, or why they are not known.

    >>> stack_layers(nn.Linear(2, 2))
    "it has no attention that goes through the library's attention interface"
    """
    found = decoder_stack(model)
    if isinstance(found, str):
        return found
    stack: Any = found[1]
    attentions = [path for path, _, role in attention_modules(model) if role == "attention"]
    inside = [(parent_of(model, path), path) for path in attentions]
    layers = {id(layer): (layer, name) for (layer, name), _ in inside}
    listed = next(child for child in stack.children() if isinstance(child, nn.ModuleList) and _holds(child, layers))
    config = getattr(stack, "config", None)
    if len(layers) != len(inside) or any(id(layer) not in layers for layer in listed):
        return "not every layer of it holds one attention"
    if len({id(layer) for layer in listed}) != len(listed):
        return "its list holds one layer at several places"
    if getattr(config, SHARED_CACHE, None):
        return "its last layers read the cache of others"
    kept = list(_reasons(model, config, len(listed)))
    path = path_of(model, listed)
    return [
        StackLayer(f"{path}.{number}", number, layer, layers[id(layer)][1], kept[number])
        for number, layer in enumerate(listed)
    ]


def _holds(listed: nn.ModuleList, layers: dict[int, Any]) -> bool:
    return any(id(layer) in layers for layer in listed)


def _reasons(model: nn.Module, config: Any, count: int) -> Iterator[str | None]:
    deep = len(getattr(getattr(getattr(model, "config", None), "vision_config", None), DEEP_PICTURES, None) or ())
    kinds = getattr(config, "layer_types", None) or [None] * count
    for number in range(count):
        if number == 0:
            yield "the first layer stays: how long a cache is, is read from it"
        elif number < deep:
            yield f"features of pictures enter the first {deep} layers"
        elif kinds[number] not in kinds[:number]:
            yield f"it is the first layer of {kinds[number]}, from which masks of its kind are made"
        else:
            yield None
