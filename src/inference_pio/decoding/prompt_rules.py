"""Which prompts recorded forwards read, and why the library reads the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.attention_name import pattern_part
from inference_pio.anatomy.choosing_heads import choosing_heads_of
from inference_pio.anatomy.decoder import Decoder
from inference_pio.anatomy.decoder_attention import LatentHeads
from inference_pio.anatomy.decoder_mlp import Mixture
from inference_pio.anatomy.pieces import PIECES, pieces_of
from inference_pio.compat import CACHE_ARGUMENT, attention_name, why_inputs_are_its_own
from inference_pio.decoding.bucket import Bucket
from inference_pio.decoding.coded_bucket import CodedBucket
from inference_pio.decoding.operations import Operations
from inference_pio.decoding.page_lists import fixed_heads_of
from inference_pio.decoding.prompt_check import why_prompt_differs
from inference_pio.decoding.prompt_runners import MOST_TOKENS, filled_up

READ_HERE = frozenset(
    {"attention_mask", "position_ids", "cache_position", CACHE_ARGUMENT, "use_cache", "logits_to_keep"}
)
"""Arguments of a forward that stand for what a prompt from place 0 on is computed with anyway."""


@dataclass(frozen=True)
class Patterned:
    """An attention that follows a pattern from so many tokens on, and what it says of shorter prompts."""

    module: nn.Module
    dense_below: int
    why_dense: str


@dataclass
class PromptRules:
    """What holds for all prompts of a model as it is: why the library reads `every` one, or None, which a recording
    that fails may come to tell; the attentions that follow a pattern; and what takes prompts, or rows of them, in
    pieces.
    """

    every: str | None
    patterned: tuple[Patterned, ...] = ()
    in_pieces: tuple[nn.Module, ...] = ()
    recordable: bool = False
    """Whether one has been recorded."""
    failed: dict[tuple[int, bool], str] = field(default_factory=dict)
    """Why the prompts of a length, of padded rows or of others, could not be, though others were."""

    @property
    def dense_below(self) -> int:
        """Tokens below which every layer attends to all."""
        return min((one.dense_below for one in self.patterned), default=MOST_TOKENS + 1)

    def fail(self, tokens: int, padded: bool, why: str) -> None:
        """A recording for so many tokens failed: all do where none has succeeded."""
        if self.recordable:
            self.failed[filled_up(tokens) or 0, padded] = why
        else:
            self.every = why


def rules_of(model: nn.Module, decoder: Decoder, operations: Operations) -> PromptRules:
    """Found once for a model as it is; reads a few tokens, composed and by the library."""
    found = (_pattern_of(layer.attention.module) for layer in decoder.layers)
    patterned = tuple(one for one in found if one is not None)
    in_pieces = tuple(module for module in chain(decoder.around, decoder.modules()) if PIECES in vars(module))
    rules = PromptRules(why_never(decoder, patterned), patterned, in_pieces)
    if rules.every is None:
        try:
            rules.every = why_prompt_differs(model, decoder, operations)
        except Exception as error:  # what a user's attention function does with what it is given may raise anything
            rules.every = f"a prompt could not be composed ({in_a_line(error)})"
    return rules


def why_never(decoder: Decoder, patterned: tuple[Patterned, ...] = ()) -> str | None:
    """Why prompts of a decoder are the library's, by how it is made; None where they may be recorded."""
    if decoder.position_rows > 1:
        return "its positions hang on pictures"
    if patterned and any(isinstance(layer.attention, LatentHeads) for layer in decoder.layers):
        return "its attention keeps a latent and follows a pattern"
    if any(isinstance(layer.mlp, Mixture) and "forward" in vars(layer.mlp.experts) for layer in decoder.layers):
        return "its experts are brought as they are asked for"
    return None


def why_not_this(
    rules: PromptRules, bucket: Bucket, model: nn.Module, prompt: Tensor, given: Mapping[str, Any], settled: Any
) -> str | None:  # fmt: skip
    """Why a prompt [B, S] is the library's, or None."""
    if reason := rules.every or why_inputs_are_its_own(model):
        return reason
    rows, tokens = prompt.shape
    length = filled_up(tokens)
    if length is None or rows * length > MOST_TOKENS:
        return f"more than {MOST_TOKENS} tokens, filled up and of all rows"
    if reason := rules.failed.get((length, bucket.padded)):
        return reason
    if isinstance(bucket, CodedBucket):
        return "its keys and values are kept as codes"
    if others := [name for name, value in given.items() if value is not None and name not in READ_HERE]:
        return f"{others[0]} was given"
    if settled.prefill_chunk_size is not None:
        return "prefill_chunk_size was given"
    if not _counts_from_0(given.get("position_ids"), given.get("attention_mask"), tokens):
        return "position_ids were given that do not count from 0"
    if bucket.starts is not None and int(bucket.starts.max()) >= tokens:
        return "a row is padding alone"
    if any(rows * tokens > each.tokens for each in filter(None, map(pieces_of, rules.in_pieces))):
        return "it is longer than the pieces that prompts are led through in"
    return "a pattern of attention is asked" if tokens >= rules.dense_below else None


def in_a_line(error: Exception) -> str:
    """What was raised, as a reason tells it.

    >>> in_a_line(ValueError("too short\\nby far"))
    'ValueError: too short'
    """
    return f"{type(error).__name__}: {(str(error) or repr(error)).splitlines()[0]}"


def _pattern_of(module: Any) -> Patterned | None:
    if pattern_part(attention_name(module.config) or "") is None:
        return None
    if (choosing := choosing_heads_of(module)) is not None:
        return Patterned(module, choosing.dense_below, f"fewer than {choosing.dense_below} tokens")
    fixed = fixed_heads_of(module)
    return Patterned(module, 0 if fixed is None else fixed.dense_below, "short rows")


def _counts_from_0(positions: Any, mask: Any, tokens: int) -> bool:
    """Whether `positions` [B or 1, tokens] are those that tokens have anyway; those of padding are read by nobody."""
    if positions is None:
        return True
    if not isinstance(positions, Tensor) or positions.shape[-1] != tokens:
        return False
    if mask is None:
        return torch.equal(positions, torch.arange(tokens, device=positions.device).expand_as(positions))
    true = mask != 0
    return bool(((positions == true.cumsum(-1) - 1) | ~true).all())
