"""What each attention of a decoder keeps of a token in the library's cache, told without running it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import DynamicCache, DynamicLayer

from inference_pio.anatomy.attention_kind import attention_shape
from inference_pio.anatomy.latent_attention import is_latent_attention, latent_attention_of
from inference_pio.anatomy.walk import attention_modules
from inference_pio.compat import LATENT_EXPANSION, is_config, why_no_cache_door


@dataclass(frozen=True)
class CachedLayer:
    """The layer's number in the cache, and the heads and widths of the two tensors that it keeps of a token."""

    number: int
    key_heads: int
    key_width: int
    value_heads: int
    value_width: int


def why_no_cache(model: nn.Module) -> str | None:
    """Why `generate` cannot be given a cache of ours for this model, whatever its layers, or None.

    >>> why_no_cache(nn.Linear(2, 2))
    'it has no transformers configuration to tell the layers of its cache by'
    """
    config: Any = getattr(model, "config", None)
    if not is_config(config):
        return "it has no transformers configuration to tell the layers of its cache by"
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder, which keeps two caches in one"
    return why_no_cache_door(model)


def cached_layers(model: nn.Module) -> list[tuple[str, CachedLayer | str]]:
    """The path of every attention of a decoder, with what it keeps whole in the cache, or why it does not.

    Raises nothing: of a model without a cache there is nothing to tell.
    """
    if why_no_cache(model) is not None:
        return []
    layers = DynamicCache(config=model.config).layers  # type: ignore[arg-type]
    modules = [(path, module) for path, module, role in attention_modules(model) if role == "attention"]
    return [(path, _cached(module, layers)) for path, module in modules]


def _cached(module: nn.Module, layers: list[Any]) -> CachedLayer | str:
    number = getattr(module, "layer_idx", None)
    if not isinstance(number, int) or not 0 <= number < len(layers) or getattr(module, "is_cross_attention", False):
        return "it keeps nothing of its own in the cache"
    kind = type(layers[number])
    if kind is not DynamicLayer:
        window = getattr(layers[number], "sliding_window", None)
        kept = f"a window of {window} tokens" if window else "no token by itself"
        return f"its cache is the library's {kind.__name__}, which keeps {kept}"
    return _widths(module, number) or "the widths of its heads cannot be told from its attributes"


def _widths(module: nn.Module, number: int) -> CachedLayer | None:
    if is_latent_attention(module) and hasattr(type(module), LATENT_EXPANSION):
        latent = latent_attention_of(module)
        return None if isinstance(latent, str) else CachedLayer(number, 1, latent.latent, 1, latent.rope)
    shape = attention_shape(module)
    if shape is None:
        return None
    return CachedLayer(number, shape.key_heads, shape.head_dim, shape.key_heads, shape.value_dim)
