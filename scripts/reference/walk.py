"""The models' forward pass for training: their own modules, walked so that a CUDA graph can hold the whole step.

The library's forward reads sizes back from the device (vision lengths, experts that were hit); this walk never does. It
differs in two formulations with equal results: experts are all computed and the ones not chosen weighted with zero, and
pictures of one size go through the vision tower as a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class Pictures:
    """`patches` [pictures * patches, pixels] in the model's order; `at` [pictures * tokens], their flat positions."""

    patches: torch.Tensor
    at: torch.Tensor


def prepare(model: nn.Module) -> list[nn.Module]:
    """Make norms and experts of this instance fit for a graph; returns its routers, which keep what they chose."""
    routers = []
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            module.forward = _norm(module)
        elif kind.endswith("Experts"):
            module.forward = _experts(module)
        elif kind.lower().endswith("topkrouter"):
            module.forward = _recording(module)
            routers.append(module)
    return routers


def _norm(module: Any) -> Any:
    def forward(states: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(states, module.weight.shape, module.weight, module.variance_epsilon)

    return forward


def _experts(module: Any) -> Any:
    def forward(states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        experts, doubled, hidden = module.gate_up_proj.shape
        share = states.new_zeros(len(states), experts).scatter(1, chosen, weights.to(states.dtype))
        gate, up = (states @ module.gate_up_proj.view(-1, hidden).T).view(-1, experts, 2, doubled // 2).unbind(2)
        inner = module.act_fn(gate) * up * share[..., None]
        return inner.flatten(1) @ module.down_proj.transpose(1, 2).reshape(-1, hidden)

    return forward


def _recording(module: Any) -> Any:
    plain = type(module).forward

    def forward(states: torch.Tensor) -> Any:
        module.logits, weights, module.chosen = plain(module, states)
        return module.logits, weights, module.chosen

    return forward


def hidden_states(
    model: Any, tokens: torch.Tensor, positions: torch.Tensor | None = None, pictures: Pictures | None = None
) -> torch.Tensor:
    """Final states [batch, length, hidden] of tokens [batch, length]; positions [3, batch, length] for M-RoPE."""
    decoder = getattr(model.model, "language_model", model.model)
    states = decoder.embed_tokens(tokens)
    if positions is None:
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        positions = positions.expand(3, 1, -1) if decoder is not model.model else positions
    rotation = decoder.rotary_emb(states, positions)
    deep: list[torch.Tensor] = []
    if pictures is not None:
        seen, deep = see(model.model.visual, pictures.patches)
        states = states.flatten(0, 1).index_copy(0, pictures.at, seen).view_as(states)
    for index, layer in enumerate(decoder.layers):
        states = layer(states, attention_mask=None, position_embeddings=rotation)
        if index < len(deep) and pictures is not None:
            states = states.flatten(0, 1).index_add(0, pictures.at, deep[index]).view_as(states)
    return decoder.norm(states)


def see(visual: Any, patches: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Picture tokens [pictures * tokens, hidden] and the deepstack features, for square pictures of one full grid."""
    side = visual.num_grid_per_side
    rows, columns = merge_order(side, visual.spatial_merge_size, patches.device)
    states = visual.patch_embed(patches).view(-1, side * side, visual.config.hidden_size)
    states = states + visual.pos_embed(rows * side + columns)
    angles = torch.cat([place[:, None] * visual.rotary_pos_emb.inv_freq.float() for place in (rows, columns)], dim=-1)
    angles = torch.cat([angles, angles], dim=-1)
    deep = []
    for index, block in enumerate(visual.blocks):
        states = states + _look(block.attn, block.norm1(states), angles.cos(), angles.sin())
        states = states + block.mlp(block.norm2(states))
        if index in visual.deepstack_visual_indexes:
            merger = visual.deepstack_merger_list[list(visual.deepstack_visual_indexes).index(index)]
            deep.append(merger(states.flatten(0, 1)))
    return visual.merger(states.flatten(0, 1)), deep


def merge_order(side: int, merge: int, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of each patch in the order Qwen3-VL reads them: squares of `merge` x `merge`, row by row."""
    index = torch.arange(side * side, device=device).view(side // merge, merge, side // merge, merge)
    flat = index.permute(0, 2, 1, 3).flatten()
    return flat // side, flat % side


def _look(attention: Any, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    pictures, patches, _ = states.shape
    qkv = attention.qkv(states).view(pictures, patches, 3, attention.num_heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    query, key = (_rotate(part.float(), cos, sin).to(states.dtype) for part in (query, key))
    seen = F.scaled_dot_product_attention(query, key, value, scale=attention.scaling)
    return attention.proj(seen.transpose(1, 2).flatten(2))


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat([-second, first], dim=-1) * sin
