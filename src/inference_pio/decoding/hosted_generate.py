"""The user's unchanged `generate`, whose caches lie on the host; calls that are not so are counted."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import Cache

from inference_pio.anatomy.cached_layers import CachedLayer, cached_layers, why_no_cache
from inference_pio.anatomy.walk import attention_modules
from inference_pio.cache import HostCache
from inference_pio.cache.host_layer import HostLayer
from inference_pio.cache.host_slab import HostSlab
from inference_pio.cache.staging import AHEAD, buffers_for
from inference_pio.contract.byte_size import in_words
from inference_pio.contract.site import Site
from inference_pio.contract.spread import spread
from inference_pio.decoding.cache_door import CacheCalls, put_caches
from inference_pio.undo.journal import Journal

KV_CACHE = "kv_cache"
"""The role of a site that is what an attention keeps of each token."""
CLAIMS = frozenset({"kv.placement"})
HOSTED = "_inference_pio_hosted_calls"
"""The attribute under which a model holds what its calls of `generate` are given."""
ONE_AHEAD = 1
"""What decisions that tell nothing of layers ahead were made with."""


@dataclass
class HostedCalls(CacheCalls):
    """Calls that are given a cache on the host. Its room is kept for the next call: pinning memory takes long."""

    ahead: int = AHEAD
    rooms: dict[int, HostSlab] = field(default_factory=dict)
    last: tuple[weakref.ref[HostLayer], ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> HostedCalls:
        return HostedCalls(dict(self.told), self.layers, ahead=self.ahead)

    def make(self, config: Any, but: tuple[int, ...]) -> Cache:
        if any(layer() is not None for layer in self.last):  # somebody holds it still, with or without its cache
            self.rooms = {}
        cache = HostCache(config, but=but, ahead=self.ahead, rooms=self.rooms)
        self.last = tuple(weakref.ref(layer) for layer in cache.host_layers)
        return cache

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "held_bytes": sum(room.nbytes for room in self.rooms.values())}


def placement_sites(model: nn.Module, device: torch.device, resident: int) -> list[Site]:
    """A site for what each attention of a decoder keeps of a token, with the reason where it stays on the device: of
    those that could move, `resident` stay, evenly spread, so that the link has their time as well.
    """
    if reason := why_no_cache(model) or _why_not_from(device) or _why_taken(model):
        paths = [path for path, _, role in attention_modules(model) if role == "attention"]
        return [Site(path, KV_CACHE, CLAIMS, reason, whole=False) for path in paths or [""]]
    found = cached_layers(model)
    moves = [path for path, layer in found if isinstance(layer, CachedLayer)]
    gone = {moves[place] for place in spread(max(0, len(moves) - resident), len(moves))}
    stay = f"it is one of the {resident} layers that stay on the device (resident_layers)"
    return [
        Site(path, KV_CACHE, CLAIMS, layer if isinstance(layer, str) else None if path in gone else stay, whole=False)
        for path, layer in found
    ]


def _why_not_from(device: torch.device) -> str | None:
    return None if device.type == "cuda" else "the model is on the host itself, and so is its cache"


def _why_taken(model: nn.Module) -> str | None:
    others = [name for name, held in vars(model).items() if isinstance(held, CacheCalls) and name != HOSTED]
    return "another optimization makes generate's caches, in a form that stays on the device" if others else None


def placement_decision(model: nn.Module, sites: Sequence[Site], ahead: int = AHEAD) -> dict[str, Any]:
    """The layers at these sites by path and number, and the bytes that a token of one row takes: on the host, in the
    layers that stay, and at most in the buffers that layers come back in.
    """
    dtype = next((one.dtype for one in model.parameters() if one.is_floating_point()), torch.float32)
    wanted = {site.path for site in sites}
    found = {path: layer for path, layer in cached_layers(model) if isinstance(layer, CachedLayer)}
    sizes = {path: _numbers(layer) * dtype.itemsize for path, layer in found.items()}
    hosted = [size for path, size in sizes.items() if path in wanted]
    return {
        "layers": {path: layer.number for path, layer in found.items() if path in wanted},
        "bytes_a_token_host": sum(hosted), "bytes_a_token_device": sum(sizes.values()) - sum(hosted),
        "bytes_a_token_staging": buffers_for(ahead, len(hosted)) * max(hosted, default=0), "layers_ahead": ahead,
    }  # fmt: skip


def _numbers(layer: CachedLayer) -> int:
    return layer.key_heads * layer.key_width + layer.value_heads * layer.value_width


def said_of_placement(decision: Mapping[str, Any]) -> str:
    """A decision in words, for a receipt."""
    ahead = decision.get("layers_ahead", ONE_AHEAD)
    host, stays, buffers = (in_words(decision[f"bytes_a_token_{where}"]) for where in ("host", "device", "staging"))
    return (
        f"generate keeps keys and values of {len(decision['layers'])} layers on the host, {host} a token and row; "
        f"{stays} stay on the device, and {buffers} are buffers, in which layers come back {ahead} ahead. "
        "A call that brings a cache of its own keeps it."
    )


def host_the_cache(journal: Journal, model: nn.Module, decision: Mapping[str, Any]) -> None:
    """From now on, `model.generate` makes its caches on the host; the journal gives the library's back."""
    ahead = decision.get("layers_ahead", ONE_AHEAD)
    calls = HostedCalls({"placement": "host"}, tuple(decision["layers"].values()), ahead=ahead)
    put_caches(journal, model, HOSTED, calls)


def hosted_calls(model: nn.Module) -> HostedCalls | None:
    """What a model's calls of `generate` are given, if it is a cache on the host."""
    found = model.__dict__.get(HOSTED)
    return found if isinstance(found, HostedCalls) else None
