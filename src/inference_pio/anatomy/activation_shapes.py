"""How many bytes a token of a prompt takes inside a decoder at once, told from the widths of its layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from inference_pio.anatomy.attention_kind import attention_shape
from inference_pio.anatomy.blocks import mlp_children
from inference_pio.anatomy.latent_attention import is_latent_attention, latent_attention_of
from inference_pio.anatomy.parts import base_of, is_experts, weights_of, widths
from inference_pio.anatomy.roles import hidden_width
from inference_pio.anatomy.rows_in_pieces import row_blocks
from inference_pio.anatomy.walk import attention_modules

STATES = 3
"""Hidden states that a layer holds at once beside what a block makes: what came in, its norm, what is added to it."""
LOSS_COPIES = 3
"""float32 copies of logits of which a loss is made: widened, their logarithms, and what lies between."""
PACKED_FROM = 64
"""Queries from which torch's attention for CPUs lays all keys and values anew in bfloat16 where the CPU has units for
matrices (AMX): 63 over 4,096 keys take none of those bytes, 64 take all. A plan counts them on every CPU, so that it
holds on each of them."""


@dataclass(frozen=True)
class ActivationShapes:
    """Bytes a token: of one hidden state, inside an attention, inside the widest MLP (without states that go in and
    come out), and of its logits, as they are and while a loss is made of them; of a query and a key in
    a mask; of a token in the cache that every piece makes keys and values of. `longest` is what the model allows.
    `packed` are those of a token in the cache that a kernel lays anew for `PACKED_FROM` queries and more.
    """

    state: int
    attention: int
    mlp: int
    logits: int
    loss: int
    mask: int
    expanded: int
    longest: int | None
    packed: int = 0

    @property
    def attention_peak(self) -> int:
        return STATES * self.state + self.attention

    def layer_peak(self, prompt_piece: int, mlp_piece: int, text: int = 0) -> int:
        """The most bytes that a layer needs for a piece of so many tokens, whose MLP computes so many at a time, where
        so many of a text lie in the cache."""
        mlp = STATES * self.state * prompt_piece + self.mlp * min(mlp_piece, prompt_piece)
        packed = self.packed * text if prompt_piece >= PACKED_FROM else 0
        return max(self.attention_peak * prompt_piece + packed, mlp)


def activation_shapes(model: nn.Module, stack: nn.Module, device: torch.device | None = None) -> ActivationShapes:
    """Those of a decoder with this stack, on this device (None: one that packs nothing). Works on a skeleton."""
    dtype = _dtype_of(model)
    itemsize, packs = dtype.itemsize, device is not None and device.type == "cpu" and dtype == torch.bfloat16
    hidden = hidden_width(stack) or 0
    attentions = [_attention_width(module) for module in _attentions(stack)]
    blocks = [_block_width(block, hidden) for _, block in row_blocks(stack)]
    vocabulary = _vocabulary(model)
    config: Any = getattr(stack, "config", None)
    longest = getattr(config, "max_position_embeddings", None)
    return ActivationShapes(
        state=hidden * itemsize, attention=max(attentions, default=0) * itemsize,
        mlp=max(blocks, default=0) * itemsize, logits=vocabulary * itemsize, loss=vocabulary * 4 * LOSS_COPIES,
        mask=1 + itemsize, expanded=max(map(_expanded, _attentions(stack)), default=0) * itemsize,
        longest=longest if isinstance(longest, int) else None,
        packed=max(map(_packed, _attentions(stack)), default=0) * itemsize if packs else 0,
    )  # fmt: skip


def _attentions(stack: nn.Module) -> list[nn.Module]:
    return [module for _, module, role in attention_modules(stack) if role == "attention"]


def _expanded(module: nn.Module) -> int:
    """Numbers that a latent attention makes of each latent in the cache, at every call: keys and values, keys anew."""
    found = latent_attention_of(module) if is_latent_attention(module) else ""
    shape = attention_shape(module)
    if isinstance(found, str) or shape is None:
        return 0
    return shape.heads * (found.nope + shape.value_dim + shape.head_dim)


def _packed(module: nn.Module) -> int:
    """Numbers of one token's key and value, as a kernel is given them: of all heads where latents are expanded."""
    shape = attention_shape(module)
    if shape is None:
        return 0
    return (shape.heads if _expanded(module) else shape.key_heads) * (shape.head_dim + shape.value_dim)


def _attention_width(module: nn.Module) -> int:
    """Numbers of one token in an attention: what its layers make, queries and keys once more where they are turned,
    and the sum of values."""
    made = sum(size[1] for child in module.children() if (size := widths(child)) is not None)
    shape = attention_shape(module)
    if shape is None:
        return 2 * made
    turned = shape.heads * shape.head_dim + shape.key_heads * shape.head_dim
    return made + 2 * turned + shape.heads * shape.value_dim


def _block_width(block: nn.Module, hidden: int) -> int:
    return max([_dense_width(block, hidden), *_mixture_widths(block, hidden)])


def _dense_width(module: nn.Module, hidden: int) -> int:
    """Gate, activated gate and their product lie there at once; of an MLP without a gate, what its activation makes."""
    children = mlp_children(module, hidden)
    inner = max((size[0] for name in children if (size := widths(module.get_submodule(name)))[1] == hidden), default=0)  # type: ignore[index]
    return 3 * inner


def _mixture_widths(block: nn.Module, hidden: int) -> Iterator[int]:
    """Every chosen expert's rows: gathered, as gate and up, gated, led back, weighed, in the tokens' order."""
    for child in block.children():
        if is_experts(base_of(child)):
            inner, taken = _expert_width(base_of(child), hidden), _top_k(block)
            yield taken * max(hidden + 4 * inner, 4 * hidden) + sum(
                _dense_width(other, hidden) for other in block.children()
            )


def _expert_width(experts: nn.Module, hidden: int) -> int:
    """The inner width of fused experts: what they lead back from, the smallest dimension that is no hidden one."""
    found = getattr(experts, "intermediate_dim", None)
    if isinstance(found, int):
        return found
    sizes = [size for tensor in weights_of(experts).values() if tensor.dim() == 3 for size in tensor.shape[1:]]
    return min([size for size in sizes if size != hidden], default=hidden)


def _top_k(block: nn.Module) -> int:
    """How many experts a token goes through, as a router beside them or the block itself says; 1 where none does."""
    found = (getattr(module, name, None) for module in block.modules() for name in ("top_k", "num_experts_per_tok"))
    return next((value for value in found if isinstance(value, int)), 1)


def _vocabulary(model: nn.Module) -> int:
    ask: Any = getattr(model, "get_output_embeddings", None)
    head = ask() if callable(ask) else None
    return (widths(head) or (0, 0))[1] if isinstance(head, nn.Module) else 0


def _dtype_of(model: nn.Module) -> torch.dtype:
    return next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), torch.float32)
