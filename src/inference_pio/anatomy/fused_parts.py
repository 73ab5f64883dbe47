"""The parts of a model that fused kernels serve, and those that they pass over, each with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from inference_pio.anatomy.fused_attention import (
    attention_forward,
    few_rows_attention_forward,
    merged_attention_forward,
    qkv_of,
    why_no_fused_attention,
)
from inference_pio.anatomy.fused_layer import layer_forward, looks_like_a_layer, why_no_fused_layer
from inference_pio.anatomy.fused_mlp import (
    few_rows_mlp_forward,
    gate_up_of,
    looks_gated,
    merged_mlp_forward,
    mlp_forward,
    why_no_gated_mlp,
)
from inference_pio.anatomy.fused_norm import norm_forward, why_no_rms_norm
from inference_pio.anatomy.latent_attention import is_latent_attention
from inference_pio.anatomy.parts import is_experts, runs_attention, vision_paths, within
from inference_pio.anatomy.roles import roles_of

NORM, MLP, ATTENTION, LAYER, EXPERTS = "norm", "mlp", "attention", "decoder_layer", "experts"
FORWARDS: dict[str, Callable[..., Any]] = {
    NORM: norm_forward, MLP: mlp_forward, ATTENTION: attention_forward, LAYER: layer_forward,
}  # fmt: skip
MERGED_FORWARDS: dict[str, Callable[..., Any]] = {MLP: merged_mlp_forward, ATTENTION: merged_attention_forward}
FEW_ROWS_FORWARDS: dict[str, Callable[..., Any]] = {MLP: few_rows_mlp_forward, ATTENTION: few_rows_attention_forward}
"""Merged layers by our kernel for a few rows."""
MERGED_LAYERS: dict[str, Callable[[nn.Module], list[nn.Module]]] = {MLP: gate_up_of, ATTENTION: qkv_of}
"""The linear layers of a part that read one input, and can be one product."""


@dataclass(frozen=True)
class Part:
    """A module by its path and what it is; `skip` says why the fused kernels pass it over."""

    path: str
    module: nn.Module
    role: str
    skip: str | None = None


def fused_parts(model: nn.Module) -> Iterator[Part]:
    """Every norm, gated MLP, attention, decoder layer and set of experts, in the order of `named_modules`.

    >>> list(fused_parts(nn.Linear(2, 2)))
    []
    """
    roles, towers = roles_of(model), vision_paths(model)
    for path, module in list(model.named_modules()):
        if (told := _told(module, roles.get(path))) is not None:
            role, reason = told
            if any(within(path, tower) for tower in towers):
                reason = "the vision tower is kept"
            yield Part(path, module, role, reason)


def _told(module: nn.Module, role: str | None) -> tuple[str, str | None] | None:
    """What a module is, and why it is passed over; None for what is nothing of all this."""
    if is_experts(module):
        return EXPERTS, "its experts are served by its experts function"
    if runs_attention(module):
        latent = "latent attention is left to the library: its norms alone are served"
        return ATTENTION, latent if is_latent_attention(module) else why_no_fused_attention(module)
    if looks_like_a_layer(module):
        return LAYER, why_no_fused_layer(module)
    if looks_gated(module):
        return MLP, why_no_gated_mlp(module)
    if role in ("norm", "vision") and "norm" in type(module).__name__.lower():
        return NORM, why_no_rms_norm(module)
    return None
