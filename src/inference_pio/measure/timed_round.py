"""One round of timed work: a forward of the prompt, then `model.generate` token by token, as a user calls them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.errors import MeasureError
from inference_pio.measure.target import check_measurable, input_device, supported, synchronize
from inference_pio.measure.token_clock import TokenClock

Clock = Callable[[], float]


@dataclass(frozen=True)
class Round:
    """What one round said, and how long it took in all."""

    decode_tokens_per_s: float
    prefill_tokens_per_s: float
    time_to_first_token_s: float
    seconds: float


@dataclass(frozen=True)
class Work:
    """What every round of every arm does: forward `prompt`, then generate after its first tokens."""

    prompt: Tensor
    decode_prompt_tokens: int
    new_tokens: int

    def __post_init__(self) -> None:
        if self.prompt.dim() != 2 or self.prompt.shape[0] != 1 or self.prompt.shape[1] < 1:
            raise MeasureError(f"the prompt to time must be token ids [1, length], not {list(self.prompt.shape)}")
        if self.new_tokens < 2:
            raise MeasureError(
                f"decode speed needs at least 2 new tokens, not {self.new_tokens}: the first pays the prompt"
            )


def run_round(model: nn.Module, work: Work, clock: Clock) -> Round:
    """Do the work once and time it. Raises MeasureError where the model cannot do it."""
    check_measurable(model)
    device = input_device(model)
    prompt = work.prompt.to(device)
    start = clock()
    prefill_s = _time_prefill(model, prompt, device, clock)
    token_clock, first_token_s = _time_decode(model, prompt[:, : work.decode_prompt_tokens], work.new_tokens, clock)
    synchronize(device)
    return Round(token_clock.tokens_per_s(), prompt.shape[1] / prefill_s, first_token_s, clock() - start)


def _time_prefill(model: nn.Module, prompt: Tensor, device: torch.device, clock: Clock) -> float:
    """Seconds of one forward; only the last position's logits, as in generate, where the model takes that wish."""
    options = supported(model, use_cache=True, logits_to_keep=1)
    synchronize(device)
    start = clock()
    # no_grad, as generate does it: a tensor that a model keeps from inference_mode could never be trained through again
    with torch.no_grad():
        model(input_ids=prompt, **options)
    synchronize(device)
    return _elapsed(start, clock())


def _time_decode(model: nn.Module, prompt: Tensor, new_tokens: int, clock: Clock) -> tuple[TokenClock, float]:
    if not callable(getattr(model, "generate", None)):
        raise MeasureError(
            f"{type(model).__name__} has no generate(): decode speed is measured through it. "
            "Give a model of the library that generates text"
        )
    token_clock = TokenClock(clock)
    synchronize(prompt.device)
    start = clock()
    model.generate(  # type: ignore[operator]
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        streamer=token_clock,
        **greedy_options(model, new_tokens),
    )
    token_clock.check(new_tokens)
    return token_clock, token_clock.stamps[0] - start


def greedy_options(model: nn.Module, new_tokens: int) -> dict[str, Any]:
    """Exactly `new_tokens`, greedily; the model's own sampling settings are unset, where it warns about unused ones."""
    own = getattr(model, "generation_config", None)
    sampling = {
        name: None for name in ("temperature", "top_p", "top_k", "min_p", "typical_p") if getattr(own, name, None)
    }
    end = getattr(own, "eos_token_id", None)
    padding = getattr(own, "pad_token_id", None)
    if padding is None:
        padding = (end[0] if isinstance(end, list) else end) or 0
    length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    return {"do_sample": False, "num_beams": 1, "use_cache": True, "pad_token_id": padding, **length, **sampling}


def _elapsed(start: float, end: float) -> float:
    if end <= start:
        raise MeasureError("the clock stood still during a forward: it is too coarse to time this model")
    return end - start
