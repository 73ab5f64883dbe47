"""The user's unchanged `generate`, whose caches are made in a format of fewer bits; calls that are not are counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import Cache

from inference_pio.anatomy.attention_kind import word
from inference_pio.anatomy.cached_layers import CachedLayer, cached_layers, why_no_cache
from inference_pio.cache import CodedCache
from inference_pio.cache.coded_layer import RECENT
from inference_pio.cache.kv_format import NONE, bits_of_token, why_not_coded
from inference_pio.cache.store import Kind
from inference_pio.contract.site import Site
from inference_pio.decoding.cache_door import CacheCalls, put_caches
from inference_pio.kernels.triton.launch import PAGE
from inference_pio.undo.journal import Journal

KV_CACHE = "kv_cache"
"""The role of a site that is what an attention keeps of each token."""
CLAIMS = frozenset({"kv.format"})
CODED = "_inference_pio_coded_calls"
"""The attribute under which a model holds what its calls of `generate` are given."""


class CodedCalls(CacheCalls):
    """Calls that are given a cache in a format."""

    def make(self, config: Any, but: tuple[int, ...]) -> Cache:
        return CodedCache(config, self.told["format"], but=but)


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
    told = {"format": decision["format"]}
    put_caches(journal, model, CODED, CodedCalls(told, tuple(decision["layers"].values())))


def coded_calls(model: nn.Module) -> CodedCalls | None:
    """What a model's calls of `generate` are given, if it is a cache in a format."""
    found = model.__dict__.get(CODED)
    return found if isinstance(found, CodedCalls) else None


def _kind(layer: CachedLayer, dtype: torch.dtype) -> Kind:
    widths = (layer.key_heads, layer.key_width, layer.value_heads, layer.value_width)
    return Kind(1, *widths, dtype, torch.device("cpu"))
