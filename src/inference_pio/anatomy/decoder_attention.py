"""The attentions of a decoder in their parts: grouped heads, with or without norms of their own, and latent ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from inference_pio.anatomy.decoder_norm import Norm, norm_of
from inference_pio.anatomy.latent_attention import (
    INTO_LATENT,
    LATENT_NORM,
    OUT_OF_LATENT,
    RESULT,
    LatentAttention,
    is_latent_attention,
    latent_attention_of,
    why_unreadable,
)
from inference_pio.anatomy.parts import is_adapted, widths
from inference_pio.compat import knows_names

QUERY, KEY, VALUE = "q_proj", "k_proj", "v_proj"
QUERY_NORM, KEY_NORM = "q_norm", "k_norm"
QUERY_INTO, QUERY_INTO_NORM, QUERY_OUT_OF = "q_a_proj", "q_a_layernorm", "q_b_proj"
ROTATION, INTERLEAVED = "apply_rotary_pos_emb", "apply_rotary_pos_emb_interleave"
"""The library's functions by which an attention turns its queries and keys."""
SCALED = "get_llama_4_attn_scale"
"""The one by which some make queries larger the further back they may look (Ministral 3)."""


@dataclass(frozen=True)
class GroupedAttention:
    """Queries of `heads`, keys and values of `key_heads`, all `head_dim` wide; the norms are over a head."""

    module: nn.Module
    query: nn.Module
    key: nn.Module
    value: nn.Module
    out: nn.Module
    query_norm: Norm | None
    key_norm: Norm | None
    heads: int
    key_heads: int
    head_dim: int
    scale: float


@dataclass(frozen=True)
class LatentHeads:
    """Queries through `query_into`, its norm and `query_out_of` (or the last alone); keys and values from a latent."""

    module: nn.Module
    query_into: nn.Module | None
    query_into_norm: Norm | None
    query_out_of: nn.Module
    into_latent: nn.Module
    latent_norm: Norm
    out_of_latent: nn.Module
    out: nn.Module
    sizes: LatentAttention
    scale: float
    interleaved: bool


def attention_parts(module: nn.Module) -> GroupedAttention | LatentHeads | str:
    """An attention in its parts, or why it is not made of known ones."""
    if getattr(module, "sliding_window", None) is not None:
        return f"{type(module).__name__} sees a sliding window alone"
    if not isinstance(getattr(module, "scaling", None), float):
        return f"{type(module).__name__} does not tell how it scales its scores"
    if knows_names(type(module), SCALED):
        return f"{type(module).__name__} scales its queries by their position"
    if any(is_adapted(child) for child in module.children()):
        return f"an adapter is wrapped around a layer of {type(module).__name__}"
    return _latent(module) if is_latent_attention(module) else _grouped(module)


def _grouped(module: nn.Module) -> GroupedAttention | str:
    children = {name: child for name, child in module.named_children() if child is not None}
    linears = {QUERY, KEY, VALUE, RESULT}
    named = type(module).__name__
    if not linears <= children.keys() <= linears | {QUERY_NORM, KEY_NORM} or not knows_names(type(module), ROTATION):
        return f"{named} is not made of queries, keys, values and a result, rotated by position"
    width, groups = getattr(module, "head_dim", None), getattr(module, "num_key_value_groups", None)
    sizes = {name: widths(children[name]) for name in linears}
    if not isinstance(width, int) or not isinstance(groups, int) or None in sizes.values():
        return f"{named} does not tell the width of its heads"
    rows = [sizes[name][1] for name in (QUERY, KEY, VALUE)]  # type: ignore[index]
    fits = rows[0] == groups * rows[1] and rows[1] == rows[2] and rows[1] % width == 0
    if not fits or sizes[RESULT][0] != rows[0]:  # type: ignore[index]
        return f"the widths of {named}'s layers do not fit each other"
    norms = [norm_of(children[name]) if name in children else None for name in (QUERY_NORM, KEY_NORM)]
    for norm in norms:
        if isinstance(norm, str):
            return norm
        if norm is not None and norm.weight.shape != (width,):
            return f"{named} has norms that are not over a head"
    query_norm, key_norm = norms
    return GroupedAttention(
        module, children[QUERY], children[KEY], children[VALUE], children[RESULT], query_norm, key_norm,  # type: ignore[arg-type]
        rows[0] // width, rows[1] // width, width, module.scaling,  # type: ignore[arg-type]
    )  # fmt: skip


def _latent(module: nn.Module) -> LatentHeads | str:
    sizes = latent_attention_of(module)
    if isinstance(sizes, str):
        return sizes
    if reason := why_unreadable(module.get_submodule(OUT_OF_LATENT)):
        return reason
    children = {name: child for name, child in module.named_children() if child is not None}
    through = QUERY_INTO in children
    query_names = {QUERY_INTO, QUERY_INTO_NORM, QUERY_OUT_OF} if through else {QUERY}
    if children.keys() != query_names | {INTO_LATENT, LATENT_NORM, OUT_OF_LATENT, RESULT}:
        return f"{type(module).__name__} holds more than a latent attention's layers"
    norms = [norm_of(children[name]) for name in ((QUERY_INTO_NORM, LATENT_NORM) if through else (LATENT_NORM,))]
    for norm in norms:
        if isinstance(norm, str):
            return norm
    if not knows_names(type(module), ROTATION) and not knows_names(type(module), INTERLEAVED):
        return f"{type(module).__name__} does not rotate by position in a known way"
    asked = bool(getattr(getattr(module, "config", None), "rope_interleave", False))
    interleaved = asked and knows_names(type(module), INTERLEAVED)
    return LatentHeads(
        module, children.get(QUERY_INTO), norms[0] if through else None, children[QUERY_OUT_OF if through else QUERY],  # type: ignore[arg-type]
        children[INTO_LATENT], norms[-1], children[OUT_OF_LATENT], children[RESULT], sizes, module.scaling,  # type: ignore[arg-type]
        interleaved,
    )  # fmt: skip
