"""How much a probe measures, and how long that may take: the defaults fit two cores and a small model."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from torch import nn

from inference_pio.errors import InvalidSetting, MeasureError
from inference_pio.measure.target import max_positions


@dataclass(frozen=True)
class ProbeSettings:
    """How much is measured; lengths are cut to what a model takes. `quality_tokens=0`: speed and memory alone.

    `greedy_tokens=0`: no continuation is compared with the original's.
    """

    quality_tokens: int = 8192
    window: int = 512
    prefill_tokens: int = 512
    decode_prompt_tokens: int = 32
    new_tokens: int = 64
    repeats: int = 5
    greedy_prompts: int = 4
    greedy_tokens: int = 128

    def __post_init__(self) -> None:
        least = {"quality_tokens": 0, "window": 2, "new_tokens": 2, "greedy_tokens": 0}
        for part in fields(self):
            value, bound = getattr(self, part.name), least.get(part.name, 1)
            if type(value) is not int or value < bound:
                raise InvalidSetting(
                    f"ProbeSettings.{part.name} must be a whole number of at least {bound}, not {value!r}"
                )

    def fitted(self, model: nn.Module) -> ProbeSettings:
        """The same with lengths that fit the model's positions."""
        limit = max_positions(model)
        if limit is None:
            return self
        room = limit - self.new_tokens
        if room < 1:
            raise MeasureError(
                f"{type(model).__name__} takes {limit} positions, too few to generate {self.new_tokens} tokens after a "
                f"prompt: set new_tokens to at most {limit - 1}"
            )
        return replace(
            self,
            window=min(self.window, limit),
            prefill_tokens=min(self.prefill_tokens, limit),
            decode_prompt_tokens=min(self.decode_prompt_tokens, room),
            greedy_tokens=min(self.greedy_tokens, limit - min(self.decode_prompt_tokens, room)),
        )
