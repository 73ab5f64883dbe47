"""A decoder taken apart into its roles, of which an engine composes a step: told by structure, with reasons why not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn

from inference_pio.anatomy.decoder_attention import GroupedAttention, LatentHeads, attention_parts
from inference_pio.anatomy.decoder_mlp import GatedMlp, Mixture, mlp_parts
from inference_pio.anatomy.decoder_norm import Norm, norm_of
from inference_pio.anatomy.parts import is_adapted
from inference_pio.anatomy.walk import attention_modules, down_to, every_module, parent_of, path_of

Attention: TypeAlias = GroupedAttention | LatentHeads
Mlp: TypeAlias = GatedMlp | Mixture
Part = TypeVar("Part")
BEFORE_ATTENTION, BEFORE_MLP, LAST_NORM, ROTARY = "input_layernorm", "post_attention_layernorm", "norm", "rotary_emb"
STEADY_ROPES = frozenset({"default", "linear", "llama3", "yarn", "proportional"})
"""Kinds of rotation whose angles depend on the position alone, not on how long the text has grown."""


@dataclass(frozen=True)
class DecoderLayer:
    """Attention and MLP, each behind its norm and added to what came in."""

    module: nn.Module
    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: Mlp


@dataclass(frozen=True)
class Decoder:
    """From tokens to logits: embedding, layers, norm, head; `rotary` makes the angles of positions.

    `position_rows` is 3 where positions of time, height and width are told apart, else 1. `around` are the modules
    between the model and its layers, through which these are called.
    """

    embedding: nn.Module
    layers: tuple[DecoderLayer, ...]
    norm: Norm
    head: nn.Module
    rotary: nn.Module
    position_rows: int
    around: tuple[nn.Module, ...]

    @property
    def dtype(self) -> torch.dtype:
        """That of what goes from layer to layer; an embedding that holds codes tells which rows it makes of them."""
        found: torch.dtype = self._rows.dtype
        return found

    @property
    def device(self) -> torch.device:
        found: torch.device = self._rows.device
        return found

    @property
    def _rows(self) -> Any:
        return self.embedding._parameters.get("weight", self.embedding)

    def modules(self) -> Iterator[nn.Module]:
        """Every module whose work a step does in its place."""
        for whole in (self.embedding, self.norm.module, self.head, *(layer.module for layer in self.layers)):
            yield from every_module(whole)


class NotComposed(Exception):
    """Raised on the way where a decoder is not made of known parts; its text is the reason."""


def decoder_of(model: nn.Module) -> Decoder | str:
    """A model's text decoder in its parts, or why it is not made of known ones.

    >>> decoder_of(nn.Linear(2, 2))
    'it has no attention that goes through the library\\'s attention interface'
    """
    try:
        return _decoder(model)
    except NotComposed as reason:
        return str(reason)


def _decoder(model: nn.Module) -> Decoder:
    attentions = [(path, module) for path, module, role in attention_modules(model) if role == "attention"]
    if not attentions:
        raise NotComposed("it has no attention that goes through the library's attention interface")
    embedding, head = (_end(model, call) for call in ("get_input_embeddings", "get_output_embeddings"))
    coded = callable(getattr(type(embedding), "dequantize", None))
    if embedding is None or (type(embedding) is not nn.Embedding and not coded):
        raise NotComposed("its embedding is none of torch's own, or it has none")
    if head is None:
        raise NotComposed("it has no head that leads to its vocabulary")
    stack, layers = _stack(model, [path for path, _ in attentions])
    around = tuple(down_to(model, path_of(model, stack)))
    norm, rotary = stack._modules.get(LAST_NORM), stack._modules.get(ROTARY)
    if norm is None or rotary is None:
        raise NotComposed(f"its decoder lacks a last norm ({LAST_NORM}) or a module of angles ({ROTARY})")
    kind = getattr(rotary, "rope_type", None)
    if kind not in STEADY_ROPES:
        raise NotComposed(f"its angles (rope_type={kind!r}) change with the length of the text")
    rows = 3 if hasattr(rotary, "mrope_section") else 1
    parts = tuple(_layer(layer) for layer in layers)
    return Decoder(embedding, parts, _needed(norm_of(norm)), head, rotary, rows, around)


def _end(model: nn.Module, call: str) -> nn.Module | None:
    found = getattr(model, call)() if hasattr(model, call) else None
    return found if isinstance(found, nn.Module) else None


def _stack(model: nn.Module, attentions: list[str]) -> tuple[nn.Module, list[nn.Module]]:
    """The module that holds the list of layers, and the layers: each attention must lie in one of its own."""
    layers = [parent_of(model, path)[0] for path in attentions]
    lists = {id(parent): parent for layer in layers for parent in [parent_of(model, path_of(model, layer))[0]]}
    if len(lists) != 1 or not isinstance(whole := next(iter(lists.values())), nn.ModuleList):
        raise NotComposed("its layers are not all in one list")
    if [id(layer) for layer in whole] != [id(layer) for layer in layers]:
        raise NotComposed("not every layer holds one attention")
    return parent_of(model, path_of(model, whole))[0], layers


def _layer(layer: nn.Module) -> DecoderLayer:
    children = dict(layer.named_children())
    norms = [children.pop(name, None) for name in (BEFORE_ATTENTION, BEFORE_MLP)]
    if any(norm is None for norm in norms) or len(children) != 2 or is_adapted(layer):
        raise NotComposed(f"{type(layer).__name__} is not attention and MLP, each behind a norm")
    attention, mlp = children.values()  # in the order in which they were built; the check on numbers has the last word
    before, behind = (_needed(norm_of(norm)) for norm in norms)  # type: ignore[arg-type]
    heads: Attention | str = attention_parts(attention)
    rest: Mlp | str = mlp_parts(mlp)
    if isinstance(heads, str) or isinstance(rest, str):
        raise NotComposed(heads if isinstance(heads, str) else str(rest))
    return DecoderLayer(layer, before, heads, behind, rest)


def _needed(found: Part | str) -> Part:
    if isinstance(found, str):
        raise NotComposed(found)
    return found
