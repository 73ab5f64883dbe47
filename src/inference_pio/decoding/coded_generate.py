"""The user's unchanged `generate`, whose caches are made in a format of fewer bits; calls that are not are counted."""

from __future__ import annotations

import functools
import types
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from inference_pio.anatomy.attention_kind import word
from inference_pio.anatomy.cached_layers import CachedLayer, cached_layers, why_no_cache
from inference_pio.cache import CodedCache
from inference_pio.cache.coded_layer import RECENT
from inference_pio.cache.kv_format import NONE, bits_of_token, why_not_coded
from inference_pio.cache.store import Kind
from inference_pio.compat import CACHE_ARGUMENT, CACHE_DOOR
from inference_pio.contract.site import Site
from inference_pio.kernels.triton.launch import PAGE
from inference_pio.undo.journal import Journal

KV_CACHE = "kv_cache"
"""The role of a site that is what an attention keeps of each token."""
CLAIMS = frozenset({"kv.format"})
CODED = "_inference_pio_coded_calls"
"""The attribute under which a model holds what its calls of `generate` are given."""


@dataclass
class CodedCalls:
    """The format and the layers that it is for; `calls` counts those that got it, `left` the others by reason."""

    kv_format: str
    layers: tuple[int, ...]
    calls: int = 0
    left: Counter[str] = field(default_factory=Counter)

    def __deepcopy__(self, memo: dict[int, Any]) -> CodedCalls:
        return CodedCalls(self.kv_format, self.layers)

    def to_json(self) -> dict[str, Any]:
        return {"format": self.kv_format, "calls": self.calls, "left_to_the_library": dict(self.left)}


def kv_sites(model: nn.Module, kv_format: str) -> list[Site]:
    """A site for what each attention of a decoder keeps of a token, with the reason where it stays as it is."""
    if reason := why_no_cache(model):
        return [Site("", KV_CACHE, CLAIMS, reason, whole=False)]
    found = cached_layers(model)
    return [Site(path, KV_CACHE, CLAIMS, _why_not(layer, kv_format), whole=False) for path, layer in found]


def _why_not(layer: CachedLayer | str, kv_format: str) -> str | None:
    if isinstance(layer, str):
        return layer
    return why_not_coded(kv_format, layer.key_width, layer.value_width, latent=_kind(layer, torch.float32).is_latent)


def kv_decision(model: nn.Module, sites: Sequence[Site], kv_format: str) -> dict[str, Any]:
    """The format, the layers at these sites by path and number, and the bytes that they keep of a token: enough to code
    the cache of the same model again.
    """
    dtype = next((one.dtype for one in model.parameters() if one.is_floating_point()), torch.float32)
    wanted = {site.path for site in sites}
    layers = {path: layer for path, layer in cached_layers(model) if path in wanted and isinstance(layer, CachedLayer)}
    kinds = [_kind(layer, dtype) for layer in layers.values()]
    before, after = (sum(bits_of_token(name, kind) for kind in kinds) / 8 for name in (NONE, kv_format))
    return {
        "format": kv_format, "layers": {path: layer.number for path, layer in layers.items()}, "dtype": word(dtype),
        "bytes_a_token_before": round(before, 3), "bytes_a_token": round(after, 3),
    }  # fmt: skip


def said_of(decision: Mapping[str, Any]) -> str:
    """A decision in words, for a receipt."""
    before, after = decision["bytes_a_token_before"], decision["bytes_a_token"]
    return (
        f"generate keeps keys and values of {len(decision['layers'])} layers as {decision['format']}: {after:g} bytes "
        f"a token and row in the place of {before:g} ({after / before:.2f}x), but the last {RECENT} to "
        f"{RECENT + PAGE - 1} tokens in {decision['dtype']}. A call that brings a cache of its own keeps it."
    )


def code_the_cache(journal: Journal, model: nn.Module, decision: Mapping[str, Any]) -> None:
    """From now on, `model.generate` makes its caches in the format; the journal gives the library's back."""
    own = model.__dict__.get(CACHE_DOOR)
    kind: Any = type(model)
    bound = own is None or (isinstance(own, types.MethodType) and own.__self__ is model)
    inner: Any = own if not bound else getattr(kind, CACHE_DOOR) if own is None else own.__func__

    @functools.wraps(inner)
    def prepare(self: Any, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        given = model_kwargs.get(CACHE_ARGUMENT)
        itself = (self,) if bound else ()  # a function of the user's own knows its model by itself
        made = inner(*itself, generation_config, model_kwargs, *args, **kwargs)
        _put_ours(self, generation_config, model_kwargs, given)
        return made

    journal.set(model, CODED, CodedCalls(decision["format"], tuple(decision["layers"].values())))
    journal.set(model, CACHE_DOOR, types.MethodType(prepare, model))


def coded_calls(model: nn.Module) -> CodedCalls | None:
    """What a model's calls of `generate` are given, if it is a cache in a format."""
    found = model.__dict__.get(CODED)
    return found if isinstance(found, CodedCalls) else None


def _put_ours(model: Any, config: Any, arguments: dict[str, Any], given: Any) -> None:
    """Replace the cache that the library made for a call by ours, if it is one that ours can stand in for."""
    coded = coded_calls(model)
    if coded is None:
        return
    if reason := _why_theirs(arguments.get(CACHE_ARGUMENT), given, config):
        coded.left[reason] += 1
        return
    but = tuple(set(range(len(arguments[CACHE_ARGUMENT].layers))) - set(coded.layers))
    cache = arguments[CACHE_ARGUMENT] = CodedCache(model.config, coded.kv_format, but=but)
    if getattr(config, "is_assistant", False):
        cache.activate_past_recording()
    coded.calls += 1


def _why_theirs(made: Any, given: Any, config: Any) -> str | None:
    if given is not None:
        return f"{CACHE_ARGUMENT} was given"
    if made is None:
        return "the call uses no cache"
    if type(made) is not DynamicCache or made.offloading:
        return f"cache_implementation={config.cache_implementation!r} was given"
    return None


def _kind(layer: CachedLayer, dtype: torch.dtype) -> Kind:
    widths = (layer.key_heads, layer.key_width, layer.value_heads, layer.value_width)
    return Kind(1, *widths, dtype, torch.device("cpu"))
