"""What every system that decodes can do: continue a prompt, freely or along given tokens, and say when tokens came."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.measure.token_clock import TokenClock


@dataclass
class Decoded:
    """Tokens [n] on the host, of the last of `rows`; seconds to the first of them and from the first to the last; their
    logits [n, vocabulary]."""

    tokens: Tensor
    first_token_s: float
    decode_s: float
    logits: Tensor | None = None
    rows: int = 1

    @property
    def tokens_per_s(self) -> float:
        """Of all rows together."""
        return self.rows * (len(self.tokens) - 1) / self.decode_s


class Decoder(ABC):
    """One system, ready to run. `forced` [n] gives the tokens to go along with, whatever the logits say.

    `stays` is the share of keys and values that no step brings over a link, `brought` what a step has from a disk.
    """

    stays = 0.0
    brought = 0

    @abstractmethod
    def decode(
        self, prompt: Tensor, new_tokens: int, *, forced: Tensor | None = None, logits: bool = False
    ) -> Decoded: ...

    def close(self) -> None:  # noqa: B027 (most have nothing to give back)
        """Give back what a process's end would not: files, folders."""


class Forced:
    """A logits processor that lets `generate` go along given tokens; the raw logits stay readable."""

    def __init__(self, tokens: Tensor, prompt_length: int) -> None:
        self._tokens, self._prompt_length = tokens.tolist(), prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        only = torch.full_like(scores, float("-inf"))
        place = min(input_ids.shape[1] - self._prompt_length, len(self._tokens) - 1)
        only[:, self._tokens[place]] = 0.0
        return only


class StopAt:
    """A stopping criterion: the text is that long."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self._length, device=input_ids.device)


class GenerateDecoder(Decoder):
    """The user's own call: `model.generate(...)`, greedily, with the given options.

    `room_tokens`, where given, is what every call makes room for: a shorter one stops early, and meets the same shapes.
    """

    def __init__(self, model: nn.Module, room_tokens: int = 0, **options: Any) -> None:
        self.model, self.room_tokens, self.options = model, room_tokens, options

    def decode(self, prompt: Tensor, new_tokens: int, *, forced: Tensor | None = None, logits: bool = False) -> Decoded:
        clock, extra = TokenClock(time.perf_counter), dict(self.options)
        if forced is not None:
            extra["logits_processor"] = [Forced(forced, prompt.shape[1])]
        if logits:
            extra |= {"output_logits": True, "return_dict_in_generate": True}
        else:
            extra["streamer"] = clock
        length = max(new_tokens, self.room_tokens - prompt.shape[1]) if self.room_tokens else new_tokens
        if length > new_tokens:
            extra["stopping_criteria"] = [StopAt(prompt.shape[1] + new_tokens)]
        _wait(prompt)
        start = time.perf_counter()
        answer = self.model.generate(  # type: ignore[operator]
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=length, do_sample=False, **extra
        )
        tokens = (answer.sequences if logits else answer)[-1, prompt.shape[1] :].cpu()
        if len(tokens) < new_tokens or (len(tokens) > new_tokens and length == new_tokens):
            raise RuntimeError(f"generate gave {len(tokens)} tokens where {new_tokens} were asked")
        if logits:
            rows = [row[-1:].float().cpu() for row in answer.logits[:new_tokens]]
            return Decoded(tokens[:new_tokens], 0.0, 0.0, torch.cat(rows))
        taken = clock.stamps[0] - start, clock.stamps[-1] - clock.stamps[0]
        return Decoded(tokens[:new_tokens], *taken, rows=len(prompt))


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
