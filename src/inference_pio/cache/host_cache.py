"""The cache of a model on the host, to be given to `forward` and `generate` as `past_key_values`."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn
from transformers import Cache, DynamicCache, DynamicLayer

from inference_pio.cache.host_layer import HostLayer
from inference_pio.cache.host_slab import HostSlab
from inference_pio.cache.staging import AHEAD, Staging
from inference_pio.compat import is_config
from inference_pio.errors import InvalidModel


class HostCache(Cache):
    """A `HostLayer` for every layer with full attention; sliding windows and the like keep the library's own.

    `but` are numbers of layers that stay on the device, too; `ahead` layers are on their way while one is read.
    `rooms` are slabs that layers take over where they fit, and leave there: for a cache that comes after another that
    nobody holds any more.
    """

    def __init__(
        self, config: Any, *, but: tuple[int, ...] = (), ahead: int = AHEAD, rooms: dict[int, HostSlab] | None = None
    ) -> None:  # fmt: skip
        if getattr(config, "is_encoder_decoder", False):
            raise InvalidModel(f"{type(config).__name__}: a HostCache serves decoders, and no encoder-decoder.")
        self.staging = Staging(ahead)
        layers = DynamicCache(config=config).layers
        for number, layer in enumerate(layers):
            if type(layer) is DynamicLayer and number not in but:
                layers[number] = HostLayer(self.staging, number, rooms)
        super().__init__(layers=layers)

    @classmethod
    def of(cls, model: nn.Module, *, but: tuple[int, ...] = (), ahead: int = AHEAD) -> HostCache:
        """An empty cache for a model, by its configuration."""
        config = getattr(model, "config", None)
        if not is_config(config):
            raise InvalidModel(f"{type(model).__name__} has no transformers configuration to tell its layers by.")
        return cls(config, but=but, ahead=ahead)

    @property
    def host_layers(self) -> list[HostLayer]:
        return [layer for layer in self.layers if isinstance(layer, HostLayer)]

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens on the host, where they are told beforehand: then nothing is moved to grow."""
        for layer in self.host_layers:
            layer.reserve(tokens)

    def report(self) -> dict[str, Any]:
        """What the cache holds and has moved, for a receipt or a status."""
        return {
            "tokens": max((layer.length for layer in self.host_layers), default=0),
            "layers": dict(Counter("host" if isinstance(layer, HostLayer) else "device" for layer in self.layers)),
            "bytes_host": sum(layer.nbytes for layer in self.host_layers),
            "bytes_staging": self.staging.nbytes,
            "bytes_brought": self.staging.brought,
            "brought_early": self.staging.early,
        }
