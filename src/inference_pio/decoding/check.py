"""Hold a composed step against the library's own forward, on a few tokens, before any user's tokens go through it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.decoder import Decoder
from inference_pio.compat import attention_name
from inference_pio.decoding.bucket import Bucket
from inference_pio.decoding.operations import Operations
from inference_pio.decoding.prompt import logits_of_prompt
from inference_pio.decoding.step import logits_of_step

TOKENS, ROWS, PADDED = 9, 2, 3
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


@torch.no_grad()
def why_prompt_differs(model: nn.Module, decoder: Decoder, operations: Operations) -> str | None:
    """Why a composed prompt may not stand in for the library's forward here, or None: its logits and what it keeps are
    as good as equal."""
    with torch.autocast(decoder.device.type, enabled=False):
        cosine = min(_cosine_of_prompt(model, decoder, operations, padded) for padded in (0, PADDED))
    if cosine >= NEAR.get(decoder.dtype, NEAR_IN_16_BITS):
        return None
    name = attention_name(getattr(model, "config", None)) or "its attention"
    return f"a prompt composed of its parts differs from the library's (cosine {cosine:.5f}, with {name})"


def _cosine_of_prompt(model: nn.Module, decoder: Decoder, operations: Operations, padded: int) -> float:
    """The least of logits, keys and values, where the first row begins behind so many tokens of padding."""
    tokens, last = _tokens(decoder), TOKENS - 2
    mask = torch.ones_like(tokens)
    mask[0, :padded] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    theirs, ours = (Bucket(model, decoder, ROWS, TOKENS, ahead=1) for _ in range(2))
    for bucket in (theirs, ours):
        bucket.clear(mask[:, :-1])
    how: dict[str, Any] = {"past_key_values": theirs.cache, "use_cache": True, "mask": mask[:, :-1]}
    expected = _call(model, tokens[:, :-1], positions[:, :-1], **how).logits[:, -1].float()
    ours.furnish()
    if ours.starts is not None:
        ours.slots.starts.copy_(ours.starts)
    place = torch.full((1,), last, device=tokens.device)
    found = [_cosine(logits_of_prompt(decoder, operations, ours, tokens, place), expected)]  # as if filled up by one
    for number in range(len(decoder.layers)):
        pairs = zip(ours.store(number).views(TOKENS - 1), theirs.store(number).views(TOKENS - 1), strict=True)
        found += [_cosine(one[:, :, padded:].flatten(1), other[:, :, padded:].flatten(1)) for one, other in pairs]
    return min(found)


def _why_differs(model: nn.Module, decoder: Decoder, operations: Operations) -> str | None:
    tokens = _tokens(decoder)
    positions = torch.arange(TOKENS, device=tokens.device).expand(ROWS, TOKENS)
    expected = _library_step(model, tokens, positions)
    bucket = Bucket(model, decoder, ROWS, TOKENS, ahead=1)
    if [layer.module.layer_idx for layer in _attentions(decoder)] != list(range(len(bucket.cache.paged_layers))):
        return "its layers do not all keep all of their keys and values"
    _call(model, tokens[:, :-1], positions[:, :-1], past_key_values=bucket.cache, use_cache=True)
    bucket.slots.begin(tokens[:, -1], positions[:, -1], length=TOKENS - 1, made=0)
    found = logits_of_step(decoder, operations, bucket)
    cosine = _cosine(found, expected)
    least = NEAR.get(decoder.dtype, NEAR_IN_16_BITS)
    if not cosine >= least and not cosine >= _nudged(model, decoder, tokens, positions, expected):
        name = attention_name(getattr(model, "config", None)) or "its attention"
        return f"a step composed of its parts gives other logits than the library (cosine {cosine:.5f}, with {name})"
    return None


def _nudged(model: nn.Module, decoder: Decoder, tokens: Tensor, positions: Tensor, expected: Tensor) -> float:
    """How near to its own logits the library stays, at `SLACK`, where its last tokens' embeddings are off by what
    rounding comes to in all layers: half a step of their dtype, times the root of the layers."""
    embedded: Tensor = decoder.embedding(tokens[:, -1:])  # type: ignore[operator]
    size = torch.finfo(embedded.dtype).eps / 2 * len(decoder.layers) ** 0.5
    noise = size * torch.randn(embedded.shape, generator=torch.Generator().manual_seed(0)).to(embedded.device)
    try:
        moved = _library_step(model, tokens, positions, inputs_embeds=(embedded * (1 + noise)).to(embedded.dtype))
    except (TypeError, ValueError):  # it takes tokens alone
        return 1.0
    return max(LEAST, 1 - SLACK * (1 - _cosine(moved, expected)))


def _cosine(found: Tensor, expected: Tensor) -> float:
    """The least of all rows; nought where one is not of the size that is expected, as a cosine does not tell."""
    found, expected = found.float(), expected.float()
    size = found.norm(dim=-1) / expected.norm(dim=-1)
    alike = torch.where((size - 1).abs() <= SIZES, torch.nn.functional.cosine_similarity(found, expected, dim=-1), 0.0)
    return alike.min().item()


def _attentions(decoder: Decoder) -> list[Any]:
    return [layer.attention for layer in decoder.layers]


def _tokens(decoder: Decoder) -> Tensor:
    """Tokens without a meaning, the same each time."""
    chance = torch.Generator().manual_seed(0)
    most: Any = decoder.embedding.num_embeddings
    return torch.randint(most // 8, most // 2, (ROWS, TOKENS), generator=chance).to(decoder.device)


def _library_step(
    model: nn.Module, tokens: Tensor, positions: Tensor, *, inputs_embeds: Tensor | None = None
) -> Tensor:
    """Logits of the last tokens, taken in by themselves: a product of one row may round otherwise than one of many.
    They may be given as embeddings."""
    cache = _call(model, tokens[:, :-1], positions[:, :-1], use_cache=True).past_key_values
    asked = {"past_key_values": cache, "use_cache": True, "inputs_embeds": inputs_embeds}
    last = _call(model, tokens[:, -1:] if inputs_embeds is None else None, positions[:, -1:], **asked)
    found: Tensor = last.logits[:, -1].float()
    return found


def _call(
    model: nn.Module, tokens: Tensor | None, positions: Tensor, mask: Tensor | None = None, **how: Any
) -> Any:  # fmt: skip
    if mask is None:
        mask = torch.ones(len(positions), int(positions[0, -1]) + 1, dtype=torch.int64, device=positions.device)
    return model(input_ids=tokens, attention_mask=mask, position_ids=positions, **how)
