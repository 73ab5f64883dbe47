"""What is asked of the library around a call: how much may come, where the next token stands, what it hands out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

OUR_CACHES = (None, "dynamic", "static")
"""Caches that a call may ask for by name and be served with ours: they hold the same numbers."""


class Asked:
    """What a call of `generate` asks for under a name: its own word first, then its configuration's, then the model's.

    >>> Asked({"num_beams": 2}, None, GenerationConfig(num_beams=3, do_sample=True)).num_beams
    2
    """

    def __init__(self, options: Mapping[str, Any], given: Any, own: Any) -> None:
        self._sources = (options, vars(given) if given is not None else {}, vars(own) if own is not None else {})

    def __getattr__(self, name: str) -> Any:
        return next((found for source in self._sources if (found := source.get(name)) is not None), None)


def why_not_this_call(asked: Asked) -> str | None:
    """Why the library must decode a call of `generate`, or None.

    >>> why_not_this_call(Asked({"num_beams": 2}, None, None))
    'beam search'
    """
    mode = GenerationConfig.get_generation_mode(asked, asked.assistant_model).value.replace("_", " ")  # type: ignore[arg-type]
    if mode not in ("greedy search", "sample"):
        return str(mode)
    for name in ("custom_generate", "past_key_values", "synced_gpus", "output_attentions", "output_hidden_states"):
        if getattr(asked, name):
            return f"{name} was given"
    if asked.use_cache is False:
        return "use_cache=False was given"
    if asked.cache_implementation not in OUR_CACHES:
        return f"cache_implementation={asked.cache_implementation!r} was given"
    return None


def most_tokens(settled: Any, input_ids: Tensor, given: dict[str, Any]) -> tuple[int, int]:
    """The tokens of the prompt, and the most that may follow it."""
    embeds = given.get("inputs_embeds")
    prompt = embeds.shape[1] if embeds is not None else input_ids.shape[1]
    return prompt, max(1, settled.max_length - input_ids.shape[1])


def first_positions(model: Any, tokens: Tensor, given: dict[str, Any], held: int) -> Tensor:
    """Where the token behind `held` others stands, [B] or [1], as the library would tell it."""
    asked = model.prepare_inputs_for_generation(tokens, next_sequence_length=1, **given)
    positions = asked.get("position_ids")
    if positions is None:
        return torch.full((1,), held, device=tokens.device)
    last: Tensor = positions[..., -1]
    return last[-1] if last.dim() == 2 else last  # a token of text stands at one place in time, height and width
