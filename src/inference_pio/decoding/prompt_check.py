"""Hold a composed prompt against the library's own forward, on a few tokens, before a user's goes through it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.decoder import Decoder
from inference_pio.compat import attention_name
from inference_pio.decoding.bucket import Bucket
from inference_pio.decoding.check import (
    NEAR,
    NEAR_IN_16_BITS,
    ROWS,
    TOKENS,
    allowed,
    call_library,
    cosine_of,
    nudge,
    some_tokens,
    told,
)
from inference_pio.decoding.operations import Operations
from inference_pio.decoding.prompt import logits_of_prompt

PADDED = 3
"""Tokens of padding that the first row begins behind in the second of two checks."""


@torch.no_grad()
def why_prompt_differs(model: nn.Module, decoder: Decoder, operations: Operations) -> str | None:
    """Why a composed prompt may not stand in for the library's forward here, or None: its logits and what it keeps are
    as good as equal, also where the first row begins behind padding."""
    with torch.autocast(decoder.device.type, enabled=False):
        for padded in (0, PADDED):
            if (cosine := _prompt_off_by(model, decoder, operations, padded)) is not None:
                name = attention_name(getattr(model, "config", None)) or "its attention"
                return f"a prompt composed of its parts differs from the library's ({told(cosine)}, with {name})"
    return None


def _prompt_off_by(model: nn.Module, decoder: Decoder, operations: Operations, padded: int) -> float | None:
    """The least cosine of logits, keys and values, if it is less than they may have."""
    tokens = some_tokens(decoder)
    mask = torch.ones_like(tokens[:, :-1])
    mask[0, :padded] = 0
    expected = _library_prompt(model, decoder, tokens[:, :-1], mask)
    bucket = _padded_bucket(model, decoder, mask)
    bucket.furnish()
    if bucket.starts is not None:
        bucket.slots.starts.copy_(bucket.starts)
    last = torch.full((1,), TOKENS - 2, device=tokens.device)
    logits = logits_of_prompt(decoder, operations, bucket, tokens, last)  # one token more, as if filled up
    cosines = list(map(cosine_of, [logits, *_kept(bucket, padded)], expected))
    if min(cosines) >= NEAR.get(decoder.dtype, NEAR_IN_16_BITS):
        return None
    try:
        moved = _library_prompt(model, decoder, tokens[:, :-1], mask, nudge(decoder, tokens[:, :-1]))
    except (TypeError, ValueError):  # it takes tokens alone
        return min(cosines)
    enough = all(one >= allowed(cosine_of(*pair)) for one, *pair in zip(cosines, moved, expected, strict=True))
    return None if enough else min(cosines)


def _library_prompt(
    model: nn.Module, decoder: Decoder, tokens: Tensor, mask: Tensor, embedded: Tensor | None = None
) -> list[Tensor]:
    """Logits behind the last token, and all that is kept of the others, by the library."""
    bucket, positions = _padded_bucket(model, decoder, mask), (mask.cumsum(-1) - 1).clamp(min=0)
    how: dict[str, Any] = {"past_key_values": bucket.cache, "use_cache": True, "mask": mask, "inputs_embeds": embedded}
    logits = call_library(model, tokens if embedded is None else None, positions, **how).logits[:, -1]
    return [logits, *_kept(bucket, int((mask == 0).sum()))]


def _padded_bucket(model: nn.Module, decoder: Decoder, mask: Tensor) -> Bucket:
    bucket = Bucket(model, decoder, ROWS, TOKENS, ahead=1)
    bucket.clear(mask)
    return bucket


def _kept(bucket: Bucket, padded: int) -> list[Tensor]:
    """Keys and values of each layer but for the places of padding, a row for each row of the batch."""
    stores = map(bucket.store, range(len(bucket.decoder.layers)))
    return [part[:, :, padded:].flatten(1) for store in stores for part in store.views(TOKENS - 1)]
