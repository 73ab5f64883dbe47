"""Multi-head latent attention: told by the layers it is made of and how their widths fit, with its reasons why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from inference_pio.anatomy.call_guards import is_foreign
from inference_pio.anatomy.parts import is_adapted, runs_attention, widths
from inference_pio.compat import LATENT_EXPANSION, why_expansion_is_needed
from inference_pio.undo.module_walk import named_modules_of

INTO_LATENT, LATENT_NORM, OUT_OF_LATENT = "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj"
RESULT = "o_proj"
QUERIES = ("q_b_proj", "q_proj")


@dataclass(frozen=True)
class LatentAttention:
    """Widths: `latent` and `rope` of what is cached for a token, `nope` and `value` of what a head makes of it."""

    heads: int
    latent: int
    rope: int
    nope: int
    value: int


def is_latent_attention(module: nn.Module) -> bool:
    """Whether a module runs attention over a cache that layers lead into and out of."""
    return runs_attention(module) and all(module._modules.get(name) for name in (INTO_LATENT, OUT_OF_LATENT))


def latent_sites(model: nn.Module) -> list[tuple[str, nn.Module, str | None]]:
    """Every latent attention of a model: path, module, and why its cache is expanded each step (None: it need not be).

    >>> latent_sites(nn.Linear(2, 2))
    []
    """
    found = [(path, module) for path, module in named_modules_of(model) if is_latent_attention(module)]
    return [(path, module, why_not_absorbed(module)) for path, module in found]


def why_not_absorbed(module: nn.Module) -> str | None:
    """Why a latent attention cannot attend to its cache as it is, or None."""
    if is_foreign(vars(module).get(LATENT_EXPANSION)):
        return "the method that expands its cache is overridden"
    if reason := why_expansion_is_needed(type(module)):  # type: ignore[arg-type]
        return reason
    fitting = latent_attention_of(module)
    return fitting if isinstance(fitting, str) else why_unreadable(module.get_submodule(OUT_OF_LATENT))


def latent_attention_of(module: nn.Module) -> LatentAttention | str:
    """The widths of a latent attention, where its layers fit each other; else what does not fit."""
    into, out_of, result = (_widths(module, name) for name in (INTO_LATENT, OUT_OF_LATENT, RESULT))
    queries = next((found for name in QUERIES if (found := _widths(module, name))), None)
    nope, value = getattr(module, "qk_nope_head_dim", None), getattr(module, "v_head_dim", None)
    if into is None or out_of is None or result is None or queries is None or not nope or not value:
        return "it lacks a layer or a width of latent attention"
    heads, latent, rope = out_of[1] // (nope + value), out_of[0], into[1] - out_of[0]
    fits = (out_of[1], result[0], queries[1]) == (heads * (nope + value), heads * value, heads * (nope + rope))
    norm = getattr(module._modules.get(LATENT_NORM), "weight", None)
    if not fits or rope <= 0 or norm is None or norm.shape != (latent,):
        return "the widths of its layers do not fit each other"
    return LatentAttention(heads, latent, rope, nope, value)


def why_unreadable(layer: nn.Module) -> str | None:
    """Why the weight that a layer multiplies with cannot be read from beside it, or None."""
    if is_adapted(layer):
        return "an adapter is wrapped around the layer that expands the cache, whose weight would be read past it"
    if layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__:
        return "the layer that expands the cache carries hooks or a forward of somebody else"
    if getattr(layer, "bias", None) is not None or hasattr(layer, "parametrizations"):
        return "the layer that expands the cache has a bias or a parametrization"
    if isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward:
        return None if layer.weight.is_floating_point() else "the layer that expands the cache holds no plain numbers"
    if callable(getattr(type(layer), "dequantize", None)):
        return None
    return f"the layer that expands the cache is of a kind whose weight cannot be read ({type(layer).__name__})"


def readable_weight(layer: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """The weight [out, in] of a layer that `why_unreadable` lets pass: a plain one as it is, a compressed one made."""
    dequantize: Callable[[torch.dtype], torch.Tensor] | None = getattr(layer, "dequantize", None)
    weight: torch.Tensor = layer.weight if dequantize is None else dequantize(dtype)  # type: ignore[assignment]
    return weight


def _widths(module: nn.Module, name: str) -> tuple[int, int] | None:
    child = module._modules.get(name)
    return None if child is None else widths(child)
