"""Long prompts led through a decoder's stack piece by piece, each behind the cache of those before it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.call_guards import put_around, serves
from inference_pio.anatomy.compiled_layer import has_compiled_layers
from inference_pio.anatomy.decoder_stack import why_not_by_tokens
from inference_pio.anatomy.last_states import last_states
from inference_pio.anatomy.pieces import PIECES, Pieces, pieces_of
from inference_pio.anatomy.prompt_arguments import cut, tokens_of, why_not_cut
from inference_pio.anatomy.prompt_room import prompt_rooms
from inference_pio.compat import CACHE_ARGUMENT, collected_by, collects_outputs
from inference_pio.undo.journal import Journal

LAST = "last_hidden_state"


def lead_prompts_in_pieces(journal: Journal, stack: nn.Module, tokens: int) -> None:
    """From now on, a stack takes at most so many tokens, of all rows together, at a time."""
    journal.set(stack, PIECES, Pieces(tokens))
    put_around(journal, stack, prompt_in_pieces)


def prompt_in_pieces(
    self: nn.Module, inner: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]
) -> Any:  # fmt: skip
    """The forward of such a stack: by `inner`, what stood there before. A piece sees those before it in the cache."""
    pieces = pieces_of(self)
    names = _names(type(self)) if given else ()  # type: ignore[arg-type]
    asked = dict(zip(names, given, strict=False)) | named
    rows, tokens = tokens_of(asked)
    if pieces is None or rows * tokens <= pieces.tokens or tokens < 2:
        return inner(self, *given, **named)
    cache: Any = asked.get(CACHE_ARGUMENT)
    held = 0 if cache is None else int(cache.get_seq_length())
    if reason := _why_whole(self, asked, cache, held):
        pieces.left[reason] += 1
        return inner(self, *given, **named)
    each = max(1, pieces.tokens // rows)
    if callable(reserve := getattr(cache, "reserve", None)):
        reserve(held + tokens)
    first = max(0, tokens - (last_states(self) or tokens))
    whole, out = None, None
    compiled = has_compiled_layers(self)  # rooms would be one more form of a layer's code, of eight that torch keeps
    with prompt_rooms(held + tokens) as rooms:
        for begin in range(0, tokens, each):
            if not compiled:
                rooms.open(asked.get(CACHE_ARGUMENT))
            part = cut(asked, held, begin, min(begin + each, tokens))
            out = inner(self, **part)
            asked[CACHE_ARGUMENT] = out.past_key_values if cache is None else cache
            whole = _put(whole, out[LAST], begin - first, tokens - first)
    pieces.cut(-(-tokens // each))
    assert out is not None
    out[LAST] = whole
    return out


def _put(whole: Tensor | None, states: Tensor, begin: int, tokens: int) -> Tensor:
    """The hidden states of all pieces, with those of one that begins at a place; what lies before the first is left."""
    if whole is None:
        whole = torch.empty(states.shape[0], tokens, states.shape[2], dtype=states.dtype, device=states.device)
    end = begin + states.shape[1]
    if end > 0:
        whole[:, max(0, begin) : end].copy_(states[:, max(0, -begin) :])
    return whole


@functools.cache
def _names(kind: type[nn.Module]) -> tuple[str, ...]:
    """The names of what a class's forward takes, in their order."""
    return tuple(inspect.signature(kind.forward).parameters)[1:]


def _why_whole(stack: Any, asked: dict[str, Any], cache: Any, held: int) -> str | None:
    """Why a call must go through in one piece, or None."""
    config = stack.config
    if not serves(stack, next(value for value in asked.values() if isinstance(value, Tensor))):
        return "gradients are recorded, or it is training"
    if (wanted := collected_by(config, asked)) or collects_outputs():
        return f"{wanted or 'an inner output'} was asked for"
    if not asked.get("return_dict", True):
        return "return_dict=False was given"
    uses_cache = asked.get("use_cache")
    if cache is None and not (getattr(config, "use_cache", False) if uses_cache is None else uses_cache):
        return "it keeps no cache, through which pieces see those before them"
    return (why_not_by_tokens(cache) if cache is not None else None) or why_not_cut(asked, held)
