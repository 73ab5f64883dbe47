"""Latent attention whose cache is not expanded at decode: it reaches the attention function as it is cached.

The library's own forward runs unchanged, with its projections, rotation and cache; only its method that expands the
cache hands on what it is given. The attention function then attends absorbed where few tokens meet a longer cache, and
expands as the library does everywhere else.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable

import torch
from torch import nn

from inference_pio.anatomy.attention_name import dense_part
from inference_pio.anatomy.latent_attention import OUT_OF_LATENT, latent_attention_of, readable_weight, why_unreadable
from inference_pio.compat import LATENT_EXPANSION, attention_name
from inference_pio.errors import InvalidModel, InvalidSetting
from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.latent_attention import latent_attention
from inference_pio.undo.journal import Journal

MOST_QUERIES = 8
"""New tokens a row that are attended absorbed; from about 200 on, expanding would take less arithmetic."""
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}

Pair = tuple[torch.Tensor, torch.Tensor]


def absorb(journal: Journal, module: nn.Module, through: str) -> None:
    """Let a latent attention hand its cache on unexpanded while it attends through the function of that name.

    That function asks `is_unexpanded`, then `attend_absorbed`, and where that gives None, `expanded`.
    """
    journal.set(module, LATENT_EXPANSION, types.MethodType(_hands_on(through), module))


def is_unexpanded(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether what comes as keys and values is a latent cache, [B, 1, L, R] and [B, 1, L, C] for queries of N + R.

    Keys that are keys are as wide as the queries.
    """
    return key.shape[-1] != query.shape[-1]


def attend_absorbed(
    module: nn.Module, query: torch.Tensor, rope: torch.Tensor, latent: torch.Tensor, mask: torch.Tensor | None,
    *, scale: float | None = None, dropout: float = 0.0,
) -> torch.Tensor | None:  # fmt: skip
    """What the heads give, [B, S, H, V], without expanding the cache; None where the library's way is to be taken.

    That is with many queries or no longer cache than them, gradients, dropout, mixed dtypes, or a layer whose weight is
    no longer readable.
    """
    queries, layer = query.shape[2], module.get_submodule(OUT_OF_LATENT)
    if queries > MOST_QUERIES or queries >= latent.shape[2] or dropout or (mask is None and queries > 1):
        return None
    if (torch.is_grad_enabled() and (query.requires_grad or latent.requires_grad)) or why_unreadable(layer) is not None:
        return None
    up = readable_weight(layer, latent.dtype)
    if not query.dtype == latent.dtype == rope.dtype == up.dtype:
        return None
    nope = query.shape[3] - rope.shape[3]
    out = latent_attention(
        query[..., :nope], query[..., nope:], latent[:, 0], rope[:, 0], up, mask=mask, scale=scale
    )  # fmt: skip
    return out.transpose(1, 2).contiguous()


def expanded(module: nn.Module, rope: torch.Tensor, latent: torch.Tensor) -> Pair:
    """Keys and values of all heads, as the library makes them of the cache."""
    expand: Callable[..., Pair] = getattr(type(module), LATENT_EXPANSION)
    return expand(module, latent, rope)


def check_absorbed(module: nn.Module) -> None:
    """Hold absorbed attention against the library's expansion, with this layer's own weight, on random latents.

    Raises InvalidSetting where they differ, and InvalidModel for weights that are NaN.
    """
    sizes = latent_attention_of(module)
    if isinstance(sizes, str):
        raise InvalidModel(f"this {type(module).__name__} has no absorbed form: {sizes}.")
    like = next(tensor for tensor in module.parameters() if tensor.is_floating_point())
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, sizes.heads, 1, sizes.nope + sizes.rope), (1, 1, 33, sizes.rope), (1, 1, 33, sizes.latent))
    query, rope, latent = (torch.randn(shape, generator=generator).to(like.device, like.dtype) for shape in shapes)
    with torch.no_grad():
        wanted = naive_attention(query, *expanded(module, rope, latent)).transpose(1, 2)
        got = attend_absorbed(module, query, rope, latent, None)
    if not bool(wanted.isfinite().all()):
        raise InvalidModel(
            f"the layer that expands the cache of this {type(module).__name__} holds NaN or infinity: check the "
            "checkpoint. Nothing was touched."
        )
    error = float("nan") if got is None else ((got - wanted).abs().max() / wanted.abs().max()).item()
    compressed = not isinstance(module.get_submodule(OUT_OF_LATENT), nn.Linear)  # may compute in bfloat16 always
    if not error <= TOLERANCE.get(torch.bfloat16 if compressed else like.dtype, 1e-5):
        raise InvalidSetting(
            f"absorbed latent attention is off by {error:.2g} from the library's expansion in {like.dtype} here, so "
            "the cache would be attended to wrongly. Nothing was touched; please report this model and these versions."
        )


@functools.cache
def _hands_on(through: str) -> Callable[[nn.Module, torch.Tensor, torch.Tensor], Pair]:
    """The method that stands in for the library's: keys' place takes the rotated part, values' place the latents."""

    def hand_on(self: nn.Module, latent: torch.Tensor, rope: torch.Tensor) -> Pair:
        if dense_part(attention_name(self.config) or "") == through:
            return rope, latent
        return expanded(self, rope, latent)

    return hand_on
