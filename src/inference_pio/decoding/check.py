"""Hold a composed step against the library's own forward, on a few tokens, before any user's tokens go through it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.decoder import Decoder
from inference_pio.compat import attention_name
from inference_pio.decoding.bucket import Bucket
from inference_pio.decoding.operations import Operations
from inference_pio.decoding.step import logits_of_step

TOKENS, ROWS = 9, 2
NEAR = {torch.float32: 0.99999}
"""Least cosine of the step's logits with the library's; a part that is missing or misread costs far more than this."""
NEAR_IN_16_BITS = 0.995
SIZES = 0.05
"""By how much sizes may differ: 16 bits move them by less than a hundredth, a factor that no part tells of by more."""
LEAST, SLACK = 0.9, 2.0
"""A deep model whose routers turn by rounding may answer with logits far from its own: steps may then lie SLACK as far
away as rounding moves it, and never under LEAST."""


@torch.no_grad()
def why_step_differs(model: nn.Module, decoder: Decoder, operations: Operations) -> str | None:
    """Why a composed step may not stand in for the library's forward here, or None: its logits are as good as equal."""
    with torch.autocast(decoder.device.type, enabled=False):
        return _why_differs(model, decoder, operations)


def _why_differs(model: nn.Module, decoder: Decoder, operations: Operations) -> str | None:
    tokens = some_tokens(decoder)
    positions = torch.arange(TOKENS, device=tokens.device).expand(ROWS, TOKENS)
    expected = _library_step(model, tokens, positions)
    bucket = Bucket(model, decoder, ROWS, TOKENS, ahead=1)
    if [layer.module.layer_idx for layer in _attentions(decoder)] != list(range(len(bucket.cache.paged_layers))):
        return "its layers do not all keep all of their keys and values"
    call_library(model, tokens[:, :-1], positions[:, :-1], past_key_values=bucket.cache, use_cache=True)
    bucket.slots.begin(tokens[:, -1], positions[:, -1], length=TOKENS - 1, made=0)
    found = logits_of_step(decoder, operations, bucket)
    cosine = cosine_of(found, expected)
    least = NEAR.get(decoder.dtype, NEAR_IN_16_BITS)
    if not cosine >= least and not cosine >= _nudged(model, decoder, tokens, positions, expected):
        name = attention_name(getattr(model, "config", None)) or "its attention"
        return f"a step composed of its parts gives other logits than the library ({told(cosine)}, with {name})"
    return None


def _nudged(model: nn.Module, decoder: Decoder, tokens: Tensor, positions: Tensor, expected: Tensor) -> float:
    """How near to its own logits the library stays, at `SLACK`, where its last tokens' embeddings are off by what
    rounding comes to in all layers: half a step of their dtype, times the root of the layers."""
    try:
        moved = _library_step(model, tokens, positions, inputs_embeds=nudge(decoder, tokens[:, -1:]))
    except (TypeError, ValueError):  # it takes tokens alone
        return 1.0
    return allowed(cosine_of(moved, expected))


def nudge(decoder: Decoder, tokens: Tensor) -> Tensor:
    """The embeddings of tokens, off by what rounding comes to in all layers."""
    embedded: Tensor = decoder.embedding(tokens)  # type: ignore[operator]
    size = torch.finfo(embedded.dtype).eps / 2 * len(decoder.layers) ** 0.5
    noise = size * torch.randn(embedded.shape, generator=torch.Generator().manual_seed(0)).to(embedded.device)
    moved: Tensor = (embedded * (1 + noise)).to(embedded.dtype)
    return moved


def allowed(moved: float) -> float:
    """The least cosine that is as good as equal where noise of rounding's size moves the library's own so far."""
    return max(LEAST, 1 - SLACK * (1 - moved))


def cosine_of(found: Tensor, expected: Tensor) -> float:
    """The least of all rows; nought where one is not of the size that is expected, as a cosine does not tell."""
    found, expected = found.float(), expected.float()
    size = found.norm(dim=-1) / expected.norm(dim=-1)
    alike = torch.where((size - 1).abs() <= SIZES, torch.nn.functional.cosine_similarity(found, expected, dim=-1), 0.0)
    return torch.where((found == expected).all(-1), 1.0, alike).min().item()  # both may be nought


def _attentions(decoder: Decoder) -> list[Any]:
    return [layer.attention for layer in decoder.layers]


def some_tokens(decoder: Decoder) -> Tensor:
    """Tokens without a meaning, the same each time."""
    chance = torch.Generator().manual_seed(0)
    most: Any = decoder.embedding.num_embeddings
    return torch.randint(most // 8, most // 2, (ROWS, TOKENS), generator=chance).to(decoder.device)


def _library_step(
    model: nn.Module, tokens: Tensor, positions: Tensor, *, inputs_embeds: Tensor | None = None
) -> Tensor:
    """Logits of the last tokens, taken in by themselves: a product of one row may round otherwise than one of many.
    They may be given as embeddings."""
    cache = call_library(model, tokens[:, :-1], positions[:, :-1], use_cache=True).past_key_values
    asked = {"past_key_values": cache, "use_cache": True, "inputs_embeds": inputs_embeds}
    last = call_library(model, tokens[:, -1:] if inputs_embeds is None else None, positions[:, -1:], **asked)
    found: Tensor = last.logits[:, -1].float()
    return found


def call_library(
    model: nn.Module, tokens: Tensor | None, positions: Tensor, mask: Tensor | None = None, **how: Any
) -> Any:  # fmt: skip
    if mask is None:
        mask = torch.ones(len(positions), int(positions[0, -1]) + 1, dtype=torch.int64, device=positions.device)
    return model(input_ids=tokens, attention_mask=mask, position_ids=positions, **how)


def told(cosine: float) -> str:
    """A cosine in words.

    >>> told(0.98), told(0.0)
    ('cosine 0.9800000', 'other sizes')
    """
    return f"cosine {cosine:.7f}" if cosine else "other sizes"
