"""Kinds of attention in a model: alike in heads, widths and dtype, and in how pictures reach them."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from inference_pio.anatomy.walk import attention_modules
from inference_pio.kernels.attention_backends import HeadShape
from inference_pio.kernels.attention_choice import Phase

HEADS = ("num_attention_heads", "num_heads", "n_head")
BOUNDS = "cu_seqlens"
"""The argument by which a vision tower's attention is told where its pictures begin and end."""


@dataclass(frozen=True)
class AttentionKind:
    """What the attention function of some modules is called with; `packed` pictures come in one row, with bounds.

    `shape` is None where the heads cannot be told.
    """

    shape: HeadShape | None
    dtype: torch.dtype
    vision: bool = False
    packed: bool = False

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Those that it meets; a tower may be handed a mask."""
        return (Phase.VISION, Phase.MASKED, Phase.BIASED) if self.vision else tuple(Phase)

    @property
    def shown(self) -> tuple[Phase, ...]:
        """Those that it is made for."""
        return (Phase.VISION,) if self.vision else tuple(phase for phase in Phase if phase is not Phase.VISION)

    def to_json(self) -> dict[str, Any]:
        heads = dict(vars(self.shape)) if self.shape else None
        return {"shape": heads, "dtype": word(self.dtype), "vision": self.vision, "packed": self.packed}


def attention_kinds(model: nn.Module, paths: Collection[str]) -> dict[AttentionKind, list[str]]:
    """The kinds of attention among the modules at `paths`, each with its own."""
    dtype = _dtype_of(model)
    kinds: dict[AttentionKind, list[str]] = {}
    for path, module, role in attention_modules(model):
        if path in paths:
            vision = role == "vision"
            kind = AttentionKind(attention_shape(module), dtype, vision, vision and packs_pictures(module))
            kinds.setdefault(kind, []).append(path)
    return kinds


def attention_shape(module: nn.Module) -> HeadShape | None:
    """The heads, key heads and widths that a module's attention function is called with; None where it cannot be told.

    A latent attention's are those after it is expanded.
    """
    config = getattr(module, "config", None)
    heads = _first(module, HEADS) or _first(config, HEADS)
    if not heads:
        return None
    width = _first(module, ("qk_head_dim", "head_dim")) or _first(config, ("head_dim",))
    width = width or (_first(config, ("hidden_size", "embed_dim")) or 0) // heads
    if not width:
        return None
    groups = _first(module, ("num_key_value_groups",)) or 1
    latent = _first(module, ("v_head_dim",)) if _first(module, ("qk_head_dim",)) else None
    return HeadShape(heads, heads // groups, width, latent or width)


def packs_pictures(module: nn.Module) -> bool:
    """Whether a module is handed the bounds of many pictures in one row."""
    return BOUNDS in inspect.signature(type(module).forward).parameters


def word(dtype: torch.dtype) -> str:
    """A dtype in one word.

    >>> word(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def _first(owner: Any, names: tuple[str, ...]) -> int | None:
    """The first of some attributes that is a whole number."""
    found = (getattr(owner, name, None) for name in names)
    return next((value for value in found if isinstance(value, int) and not isinstance(value, bool)), None)


def _dtype_of(model: nn.Module) -> torch.dtype:
    """What a model computes in: its first floating-point parameter's dtype."""
    return next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), torch.float32)
