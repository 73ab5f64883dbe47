"""The cache of a model, to be given to `forward` and `generate` as `past_key_values`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache, DynamicLayer

from inference_pio.cache.paged_layer import PagedLayer
from inference_pio.cache.span import Span, starts_of
from inference_pio.compat import is_config
from inference_pio.errors import InvalidModel, InvalidSetting, UnknownName


class PagedCache(Cache):
    """A `PagedLayer` for every layer with full attention; sliding windows and the like keep the library's own.

    `capacity` tokens are held from the first on. `sidecars` keeps a summary of each page of keys, in all paged layers
    or in those named by number. `attention_mask` tells which rows are padded on the left, where not all begin at 0.
    """

    def __init__(
        self,
        config: Any,
        *,
        capacity: int = 0,
        sidecars: bool | Collection[int] = False,
        attention_mask: torch.Tensor | None = None,
    ) -> None:
        if getattr(config, "is_encoder_decoder", False):
            raise InvalidModel(f"{type(config).__name__}: a PagedCache serves decoders, and no encoder-decoder.")
        if capacity < 0:
            raise InvalidSetting(f"capacity={capacity}: a number of tokens, 0 to grow as they come.")
        self.span = Span()
        theirs = DynamicCache(config=config).layers
        paged = [number for number, layer in enumerate(theirs) if type(layer) is DynamicLayer]
        wanted = sidecars if not isinstance(sidecars, bool) else paged if sidecars else ()
        for number in wanted:
            if number not in paged:
                raise UnknownName("paged layer", number, map(str, paged), where="in sidecars=")
        for number in paged:
            theirs[number] = PagedLayer(self.span, capacity, number in wanted)
        super().__init__(layers=theirs)
        if attention_mask is not None:
            self.set_padding(attention_mask)

    @classmethod
    def of(cls, model: nn.Module, **options: Any) -> PagedCache:
        """An empty cache for a model, by its configuration."""
        config = getattr(model, "config", None)
        if not is_config(config):
            raise InvalidModel(f"{type(model).__name__} has no transformers configuration to tell its layers by.")
        return cls(config, **options)

    @property
    def paged_layers(self) -> list[PagedLayer]:
        return [layer for layer in self.layers if isinstance(layer, PagedLayer)]

    def set_padding(self, attention_mask: torch.Tensor) -> None:
        """Tell which rows are padded on the left, before the first token comes."""
        if self.span.tokens:
            raise InvalidSetting(f"the cache holds {self.span.tokens} tokens: reset() it before telling its padding.")
        self.span.pad(starts_of(attention_mask))

    def reserve(self, tokens: int) -> None:
        """Hold at least so many tokens: until there are more, no address changes."""
        for layer in self.paged_layers:
            layer.reserve(tokens)

    def hold(self, tokens: int) -> None:
        """Know of so many tokens, which were written into the stores of all layers by others."""
        for layer in self.paged_layers:
            layer.hold(tokens)

    def reset(self) -> None:
        """Forget all tokens and their padding; their room stays."""
        super().reset()
        self.span.pad(None)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.span.select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.span.starts is not None:
            self.span.starts = self.span.starts.repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        if self.span.starts is not None:
            self.span.starts = self.span.starts[indices]

    @property
    def nbytes(self) -> int:
        """All bytes that the cache holds, used or not."""
        report = self.report()
        return int(report["bytes_reserved"] + report["bytes_sidecars"] + report["bytes_library_layers"])

    def report(self) -> dict[str, Any]:
        """What the cache holds, for a receipt or a status: counts of layers by kind, tokens and bytes."""
        stores = [(layer.store, layer.length) for layer in self.paged_layers if layer.store]
        others = [layer for layer in self.layers if not isinstance(layer, PagedLayer)]
        held = [vars(layer).get(name) for layer in others for name in ("keys", "values")]
        return {
            "tokens": self.span.tokens,
            "capacity": max((store.capacity for store, _ in stores), default=0),
            "layers": dict(Counter(_kind(layer) for layer in self.layers)),
            "sidecars": dict(Counter(layer.sidecar.backend for layer in self.paged_layers if layer.sidecar)),
            "bytes_reserved": sum(store.nbytes for store, _ in stores),
            "bytes_used": sum(store.nbytes * length // store.capacity for store, length in stores),
            "bytes_sidecars": sum(layer.sidecar.nbytes for layer in self.paged_layers if layer.sidecar),
            "bytes_library_layers": sum(tensor.nbytes for tensor in held if tensor is not None),
        }


def _kind(layer: Any) -> str:
    if not isinstance(layer, PagedLayer):
        return type(layer).__name__
    return "latent" if layer.store and layer.store.kind.is_latent else "paged"
