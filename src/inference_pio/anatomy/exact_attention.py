"""The attention function, in transformers' signature, that runs each call on the backend chosen for its phase."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.absorbed_decode import attend_absorbed, expanded, is_unexpanded
from inference_pio.anatomy.served import Served
from inference_pio.compat import (
    ONLY_THE_LIBRARY_KNOWS,
    attention_weights_wanted,
    has_varlen_attention,
    library_attention,
    seen_keys,
)
from inference_pio.errors import RefusedOnOptimized
from inference_pio.kernels.attention_backends import run
from inference_pio.kernels.attention_choice import FLASH, FUSED, Phase
from inference_pio.kernels.packed_attention import lengths_of, packed_attention, packed_varlen_attention

Function = Callable[..., tuple[Tensor, None]]
PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
SERVED = "_inference_pio_served"
"""The attribute in which a function of ours tells by what it serves."""


def exact_attention(served: Served) -> Function:
    """A function that runs each call on the backend that serves its phase."""
    weights_wanted = attention_weights_wanted()

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
        dropout: float = 0.0, scaling: float | None = None, is_causal: bool | None = None, **rest: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        if rest.get("output_attentions") or (not torch.compiler.is_compiling() and weights_wanted()):
            raise _weights_refused()
        theirs = not ONLY_THE_LIBRARY_KNOWS.isdisjoint(rest) and _asks_the_library(rest)
        if is_unexpanded(query, key):
            latent = (query, key, value, attention_mask)
            absorbed = None if theirs else attend_absorbed(module, *latent, scale=scaling, dropout=dropout)
            if absorbed is not None:
                return absorbed, None
            key, value = expanded(module, key, value)
        if theirs:
            given = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **rest}
            return library_attention()(module, query, key, value, attention_mask, **given)  # type: ignore[no-any-return]
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        phase, key, value, how = sort(query, key, value, attention_mask, causal=bool(causal))
        if phase is Phase.PREFILL and query.is_cuda:
            phase = served.prompt(query, key, value)
        backend = served.backend(phase, query, key, value, dropout, how.get("mask"))
        out = run(backend, phase, query, key, value, **how, scale=scaling, dropout=dropout)
        return out.transpose(1, 2).contiguous(), None

    vars(attention)[SERVED] = served
    return attention


def decodes_by_torch(function: Function) -> bool:
    """Whether an attention function is one of ours that takes a token which sees all keys to torch's own choice."""
    served = getattr(function, SERVED, None)
    return isinstance(served, Served) and all(name == FUSED for _, name in served.serving.steps.get(Phase.DECODE, ()))


def exact_vision_attention(served: Served) -> Function:
    """The same for a vision tower that packs its pictures in one row and tells their bounds: one call for all."""
    plain, weights_wanted = exact_attention(served), attention_weights_wanted()

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
        dropout: float = 0.0, scaling: float | None = None, is_causal: bool | None = None, **rest: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        bounds, _, longest, _ = (rest.pop(name, None) for name in PACKING)
        if bounds is None or attention_mask is not None:
            given = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **rest}
            return plain(module, query, key, value, attention_mask, **given)
        if rest.get("output_attentions") or (not torch.compiler.is_compiling() and weights_wanted()):
            raise _weights_refused()
        backend = served.backend(Phase.VISION, query, key, value, dropout)
        lengths = lengths_of(bounds)
        if backend == FLASH and len(set(lengths)) > 1 and has_varlen_attention():
            out = packed_varlen_attention(query, key, value, bounds, longest or max(lengths), scaling)
        else:
            attend = partial(run, backend, Phase.VISION, scale=scaling, dropout=dropout)
            out = packed_attention(attend, query, key, value, lengths)
        return out[None], None

    return attention


def sort(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, causal: bool
) -> tuple[Phase, Tensor, Tensor, dict[str, Tensor | None]]:
    """The phase of a call, its keys and values without those at the end that nobody sees, and what hides others.

    Without a mask a causal call sees as many keys as there are queries: the rest is room in a static cache.
    """
    queries, keys = query.shape[2], key.shape[2]
    if mask is None:
        if queries == 1:
            return Phase.DECODE, key, value, {}
        if not causal:
            return Phase.VISION, key, value, {}
        if keys > queries:
            key, value = key[:, :, :queries], value[:, :, :queries]
        return Phase.PREFILL, key, value, {}
    seen = seen_keys(mask)
    if seen is None or mask.shape[0] != query.shape[0] or tuple(mask.shape[-2:]) != (queries, keys):
        phase = Phase.BIASED if mask.dtype != torch.bool else Phase.MASKED
        return (Phase.MASKED_DECODE if queries == 1 else phase), key, value, {"mask": mask}
    if seen.length is not None and seen.length < keys:
        key, value, mask = key[:, :, : seen.length], value[:, :, : seen.length], mask[..., : seen.length]
    hidden: dict[str, Tensor | None] = {"mask": mask, "starts": seen.starts, "ends": seen.ends}
    if seen.ends is not None:
        return (Phase.STATIC_DECODE if queries == 1 else Phase.MASKED), key, value, hidden
    if seen.starts is not None:
        return (Phase.PADDED_DECODE if queries == 1 else Phase.PADDED_PREFILL), key, value, hidden
    if queries == 1:
        return Phase.DECODE, key, value, {}
    if queries == key.shape[2]:
        return Phase.PREFILL, key, value, {}
    return Phase.CHUNK, key, value, hidden


def _asks_the_library(given: dict[str, Any]) -> bool:
    return any(given[name] is not None for name in ONLY_THE_LIBRARY_KNOWS & given.keys())


def _weights_refused() -> RefusedOnOptimized:
    return RefusedOnOptimized(
        "output_attentions=True asks for attention weights, which no fused kernel makes: take flash_attention off "
        "first (remove_optimizations(model, ['flash_attention'])), and give the model eager attention."
    )
