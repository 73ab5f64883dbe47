"""Text from a model, told piece by piece as it comes, and timed as it is measured elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TextStreamer

from inference_pio.errors import InvalidSetting, MeasureError, SourceError
from inference_pio.measure.target import input_device, max_positions
from inference_pio.measure.token_clock import TokenClock
from inference_pio.sources import OpenedModel

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")


@dataclass(frozen=True)
class Generated:
    """A text and how fast it came; `decode_tokens_per_s` is None for fewer than two tokens."""

    text: str
    prompt_tokens: int
    new_tokens: int
    time_to_first_token_s: float
    decode_tokens_per_s: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def generate_text(
    opened: OpenedModel, prompt: str, *, max_new_tokens: int = 128, chat: bool = True,
    say: Callable[[str], object] = lambda text: None,
) -> Generated:  # fmt: skip
    """Generate greedily after `prompt`, in the tokenizer's chat form where it has one; pieces go to `say`.

    Raises SourceError for a model without a tokenizer, a chat form that fails, or a prompt without a token;
    InvalidSetting for a prompt that is no text, or more tokens than the model has positions.
    """
    if opened.tokenizer is None:
        raise SourceError(f"{opened.name} has no tokenizer, so it cannot read a prompt: give a source that holds one.")
    _check_text(prompt)
    given = _tokens(opened.tokenizer, prompt, chat).to(input_device(opened.model))
    if not given.shape[1]:
        raise SourceError("the prompt holds no token: give some text.")
    limit = max_positions(opened.model)
    if limit is not None and given.shape[1] + max_new_tokens > limit:
        raise InvalidSetting(
            f"{opened.name} takes {limit} tokens in all, and the prompt is {given.shape[1]} long: ask for at most "
            f"{max(0, limit - given.shape[1])} new ones (max_new_tokens), not {max_new_tokens}."
        )
    ear = _Ear(opened.tokenizer, say)
    start = time.perf_counter()
    opened.model.generate(
        input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=max_new_tokens, streamer=ear,
        **_greedily(opened),
    )  # fmt: skip
    return Generated(
        "".join(ear.pieces), given.shape[1], sum(ear.clock.counts), ear.clock.stamps[0] - start, _rate(ear)
    )


class _Ear(TextStreamer):
    """Hears every token: notes when it came, and says the text that is certain."""

    def __init__(self, tokenizer: Any, say: Callable[[str], object]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.clock, self.pieces, self._say = TokenClock(time.perf_counter), [], say

    pieces: list[str]

    def put(self, value: Tensor) -> None:
        self.clock.put(value)
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.pieces.append(text)
        self._say(text)


def _tokens(tokenizer: Any, prompt: str, chat: bool) -> Tensor:
    in_form = chat and getattr(tokenizer, "chat_template", None)
    found = _in_chat_form(tokenizer, prompt) if in_form else tokenizer(prompt, return_tensors="pt")
    ids: Tensor = found["input_ids"]
    return ids.long()


def _in_chat_form(tokenizer: Any, prompt: str) -> Any:
    messages = [{"role": "user", "content": prompt}]
    try:
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    except Exception as error:  # the form is a program of the model's, and may fail as it likes
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(
            f"the chat form of this model's tokenizer fails ({told}): do without it (chat=False, --no-chat)."
        ) from error


def _check_text(prompt: str) -> None:
    """A shell hands on bytes that are no text as half characters, which no tokenizer takes."""
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidSetting(
            f"the prompt is no text: character {error.start + 1} is half of one. Give it in UTF-8."
        ) from error


def _greedily(opened: OpenedModel) -> dict[str, Any]:
    """No sampling, and none of the model's own sampling settings, about which the library would warn."""
    own = opened.model.generation_config
    unset = {name: None for name in SAMPLING if getattr(own, name, None) is not None}
    padding = {} if own.pad_token_id is not None else {"pad_token_id": getattr(opened.tokenizer, "eos_token_id", None)}
    return {"do_sample": False, **unset, **padding}


def _rate(ear: _Ear) -> float | None:
    try:
        return ear.clock.tokens_per_s()
    except MeasureError:  # one token only, or all of them at one moment
        return None
