"""The blocks of a decoder layer, taken apart: attention, router beside experts, MLP. Each gives roles by child name."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import nn

from inference_pio.anatomy.names import ATTENTION_OUT, ATTENTION_QKV, ROUTERS
from inference_pio.anatomy.parts import base_of, is_experts, weights_of, widths

Role: TypeAlias = Literal[
    "embedding",
    "head",
    "attention.qkv",
    "attention.out",
    "mlp.gate_up",
    "mlp.down",
    "experts",
    "router",
    "norm",
    "vision",
    "adapter",
    "unknown",
]
GATE_UP: Role = "mlp.gate_up"
DOWN: Role = "mlp.down"


def attention_children(module: nn.Module) -> dict[str, Role]:
    """The linear layers of an attention module, told apart by name: their widths often agree."""
    roles: dict[str, Role] = {}
    for name, child in module.named_children():
        if widths(child) is not None and name in ATTENTION_QKV | ATTENTION_OUT:
            roles[name] = "attention.qkv" if name in ATTENTION_QKV else "attention.out"
    return roles


def routers(block: nn.Module) -> dict[str, Role]:
    """Beside fused experts: whoever holds one row of weights for each of them."""
    bases = {name: base_of(child) for name, child in block.named_children()}
    counts = {_number_of_experts(child) for child in bases.values() if is_experts(child)}
    roles: dict[str, Role] = {}
    for name, child in bases.items():
        rows = {tensor.shape[0] for tensor in weights_of(child).values() if tensor.dim() == 2}
        if name in ROUTERS or (rows & counts and not is_experts(child)):
            roles[name] = "router"
    return roles


def _number_of_experts(experts: nn.Module) -> int:
    return next(tensor.shape[0] for tensor in weights_of(experts).values() if tensor.dim() == 3)


def mlp_children(module: nn.Module, hidden: int) -> dict[str, Role]:
    """Two or three linear layers and nothing else with weights: the last leads back, the others lead there.

    Layers that are all square could be anything, a query, a key and a value for one.
    """
    layers = {name: widths(child) for name, child in module.named_children() if widths(child) or _holds_weights(child)}
    *first, last = layers or {"": None}
    back = layers.get(last)
    if len(first) not in (1, 2) or back is None or back == (hidden, hidden) or weights_of(module):
        return {}
    there = ((hidden, back[0]), (hidden, 2 * back[0]))  # the second where gate and up are one layer
    if back[1] != hidden or any(layers[name] not in there for name in first):
        return {}
    return dict.fromkeys(first, GATE_UP) | {last: DOWN}


def _holds_weights(module: nn.Module) -> bool:
    return any(weights_of(one) for one in module.modules())
