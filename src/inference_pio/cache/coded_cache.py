"""The cache of a model in a format of fewer bits, to be given to `forward` and `generate` as `past_key_values`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import Cache, DynamicCache, DynamicLayer

from inference_pio.cache.coded_layer import CodedLayer
from inference_pio.cache.kv_format import NONE, bits_of_token, kv_format_named
from inference_pio.compat import is_config
from inference_pio.errors import InvalidModel, InvalidSetting


class CodedCache(Cache):
    """A `CodedLayer` for every layer with full attention; sliding windows and the like keep the library's own.

    `kv_format` is "int8", "int4" or "fp8". `but` are numbers of layers that keep the library's own, too.
    """

    def __init__(self, config: Any, kv_format: str, *, but: tuple[int, ...] = ()) -> None:
        if getattr(config, "is_encoder_decoder", False):
            raise InvalidModel(f"{type(config).__name__}: a CodedCache serves decoders, and no encoder-decoder.")
        if kv_format_named(kv_format) == NONE:
            raise InvalidSetting("kv_format='none' codes nothing: give the model a PagedCache or a DynamicCache.")
        self.kv_format = kv_format
        layers = DynamicCache(config=config).layers
        for number, layer in enumerate(layers):
            if type(layer) is DynamicLayer and number not in but:
                layers[number] = CodedLayer(kv_format)
        super().__init__(layers=layers)

    @classmethod
    def of(cls, model: nn.Module, kv_format: str) -> CodedCache:
        """An empty cache for a model, by its configuration."""
        config = getattr(model, "config", None)
        if not is_config(config):
            raise InvalidModel(f"{type(model).__name__} has no transformers configuration to tell its layers by.")
        return cls(config, kv_format)

    @property
    def coded_layers(self) -> list[CodedLayer]:
        return [layer for layer in self.layers if isinstance(layer, CodedLayer)]

    @property
    def nbytes(self) -> int:
        """All bytes that the cache holds, used or not."""
        report = self.report()
        return int(report["bytes_coded"] + report["bytes_recent"] + report["bytes_library_layers"])

    def report(self) -> dict[str, Any]:
        """What the cache holds, for a receipt or a status: counts of layers by kind, tokens and bytes."""
        kinds = [layer.kind for layer in self.coded_layers if layer.kind is not None]
        others = [layer for layer in self.layers if not isinstance(layer, CodedLayer)]
        recent = sum(layer.recent_nbytes for layer in self.coded_layers)
        return {
            "format": self.kv_format,
            "tokens": max((layer.get_seq_length() for layer in self.coded_layers), default=0),
            "tokens_coded": max((layer.coded for layer in self.coded_layers), default=0),
            "layers": dict(Counter(_name_of(layer) for layer in self.layers)),
            "bytes_a_token": round(sum(bits_of_token(self.kv_format, kind) for kind in kinds) / 8, 3),
            "bytes_a_token_uncoded": round(sum(bits_of_token(NONE, kind) for kind in kinds) / 8, 3),
            "bytes_coded": sum(layer.nbytes for layer in self.coded_layers) - recent,
            "bytes_recent": recent,
            "bytes_library_layers": sum(
                tensor.nbytes for layer in others for tensor in _tensors(list(vars(layer).values()))
            ),
        }


def _tensors(held: Any) -> Iterator[Tensor]:
    """Tensors anywhere in lists and mappings: layers of other kinds keep states of several."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, list | tuple | dict):
        for one in held.values() if isinstance(held, dict) else held:
            yield from _tensors(one)


def _name_of(layer: Any) -> str:
    return layer.kv_format if isinstance(layer, CodedLayer) else type(layer).__name__
