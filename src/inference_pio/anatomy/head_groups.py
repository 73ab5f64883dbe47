"""The key heads of a decoder's attentions, each with the query heads that read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from inference_pio.anatomy.decoder_attention import KEY, QUERY, VALUE, GroupedAttention, LatentHeads, attention_parts
from inference_pio.anatomy.latent_attention import RESULT
from inference_pio.anatomy.prunable import ReadUnits, Weights, said_by
from inference_pio.anatomy.removable_layers import stack_layers
from inference_pio.anatomy.walk import is_linear

KV_HEADS = "kv_heads"
KEY_COUNTS, QUERY_COUNTS = ("num_key_value_heads", "num_kv_heads"), ("num_attention_heads", "num_heads")
WIDTH_OF_HEADS = "head_dim"


@dataclass(frozen=True)
class HeadGroups(ReadUnits):
    """An attention of `width` key heads, `queries` query heads to each, all `head_dim` wide."""

    queries: int
    head_dim: int
    told_by: ClassVar[tuple[str, ...]] = KEY_COUNTS

    @property
    def down(self) -> str:
        return f"{self.path}.{RESULT}"

    @property
    def down_name(self) -> str:
        return f"{RESULT}.weight"

    @property
    def block(self) -> int:
        return self.queries * self.head_dim

    @property
    def weights(self) -> dict[str, Any]:
        found = {f"{RESULT}.weight": self.module.get_parameter(f"{RESULT}.weight")}
        for name in (QUERY, KEY, VALUE):
            layer = self.module.get_submodule(name)
            found |= {f"{name}.{key}": weight for key, weight in layer.named_parameters(recurse=False)}
        return found

    def told(self, config: object, width: int) -> dict[str, int]:
        if config is not getattr(self.module, "config", None):
            return {}
        heads = said_by(config, QUERY_COUNTS, self.width * self.queries, width * self.queries)
        return {**said_by(config, KEY_COUNTS, self.width, width), **heads}

    def numbers(self, width: int) -> Iterator[tuple[nn.Module, str, int]]:
        yield from super().numbers(width)
        for name in QUERY_COUNTS:
            if vars(self.module).get(name) == self.width * self.queries:
                yield self.module, name, width * self.queries

    def narrowed(self, kept: Tensor, down: Tensor) -> Weights:
        weights = {name: weight.detach() for name, weight in self.weights.items() if name != self.down_name}
        rows = {name: self.block if name.startswith(QUERY) else self.head_dim for name in weights}
        return {
            **{name: _rows(weight, kept[0], rows[name]) for name, weight in weights.items()}, self.down_name: down[0],
        }  # fmt: skip


def head_groups(model: nn.Module) -> Iterator[HeadGroups | tuple[str, str]]:
    """Every attention of a decoder; a path and a reason in the place of those of other kinds."""
    layers = stack_layers(model)
    if isinstance(layers, str):
        yield "", layers
        return
    for layer in layers:
        yield _of_attention(layer.attention_path, model.get_submodule(layer.attention_path))


def _of_attention(path: str, module: nn.Module) -> HeadGroups | tuple[str, str]:
    parts = attention_parts(module)
    if isinstance(parts, LatentHeads):
        return path, "its keys and values come out of a latent that all of its heads share, so no group can go"
    if not isinstance(parts, GroupedAttention):
        return path, parts
    layers = (parts.query, parts.key, parts.value, parts.out)
    if not all(is_linear(layer) and isinstance(layer, nn.Linear) for layer in layers):
        return path, "its layers are stored or computed in another way than plain linear layers"
    config = getattr(module, "config", None)
    if config is None or not isinstance(vars(config).get(WIDTH_OF_HEADS), int):
        return path, "its configuration tells no head_dim, but derives it from the number of heads"
    return HeadGroups(path, module, KV_HEADS, parts.key_heads, parts.heads // parts.key_heads, parts.head_dim)


def _rows(weight: Tensor, kept: Tensor, rows: int) -> Tensor:
    """The rows of some units of a weight or a bias, `rows` each."""
    units = weight.reshape(-1, rows, *weight.shape[1:])
    return units.index_select(0, kept).flatten(0, 1)
