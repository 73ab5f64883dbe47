"""The stack of a decoder: the module that holds its layers and leads tokens or their embeddings through them."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers import DynamicCache, DynamicLayer
from transformers.cache_utils import DynamicSlidingWindowLayer

from inference_pio.anatomy.walk import attention_modules, parent_of, path_of
from inference_pio.compat import CACHE_ARGUMENT, is_config

NEEDED = frozenset({CACHE_ARGUMENT, "attention_mask", "inputs_embeds", "use_cache"})
"""What the forward of a stack names, if it leads tokens behind those of a cache."""
TOKEN_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
"""Layers of a cache that keep tokens one by one, so that a prompt may come in pieces."""


def decoder_stack(model: nn.Module) -> tuple[str, nn.Module] | str:
    """The path and the module of a model's stack of decoder layers, or why there is none that is known.

    >>> decoder_stack(nn.Linear(2, 2))
    "it has no attention that goes through the library's attention interface"
    """
    attentions = [path for path, _, role in attention_modules(model) if role == "attention"]
    if not attentions or "" in attentions:
        return "it has no attention that goes through the library's attention interface"
    layers = [parent_of(model, path)[0] for path in attentions]
    paths = [path_of(model, layer) for layer in layers]
    lists = {id(parent): parent for path in paths if path for parent in [parent_of(model, path)[0]]}
    if len(lists) != 1 or not isinstance(whole := next(iter(lists.values())), nn.ModuleList) or "" in paths:
        return "its layers are not all in one list"
    path = path_of(model, whole).rpartition(".")[0]
    return path, model.get_submodule(path)


def why_not_behind_a_cache(stack: nn.Module) -> str | None:
    """Why a stack cannot be led through a prompt piece by piece, each behind the cache of those before it, or None."""
    config: Any = getattr(stack, "config", None)
    if not is_config(config) or getattr(config, "is_encoder_decoder", False):
        return f"{type(stack).__name__} is no decoder of the library's with a cache of its own"
    if missing := sorted(NEEDED - set(inspect.signature(type(stack).forward).parameters)):
        return f"the forward of {type(stack).__name__} takes no {missing[0]}"
    return why_not_by_tokens(DynamicCache(config=config))


def why_not_by_tokens(cache: Any) -> str | None:
    """Why what a cache keeps does not come token by token, or None.

    >>> why_not_by_tokens(DynamicCache()) is None
    True
    """
    if getattr(cache, "offloading", False):
        return "the library moves its cache off the device, one layer ahead"
    others = {type(layer).__name__ for layer in cache.layers if not isinstance(layer, TOKEN_LAYERS)}
    return f"its cache has layers of another kind ({', '.join(sorted(others))})" if others else None
