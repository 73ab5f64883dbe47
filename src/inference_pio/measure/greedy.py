"""How long an optimized model goes on saying what the original said, word for word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.errors import MeasureError
from inference_pio.measure.interval import Interval, mean_interval
from inference_pio.measure.proportion import Proportion
from inference_pio.measure.target import check_measurable, input_device
from inference_pio.measure.timed_round import greedy_options

NEW_TOKENS = 128


@dataclass(frozen=True)
class GreedyAgreement:
    """`agreed` is the mean share of the original's tokens that come before the first other one; `identical` counts
    the continuations that agree to their end.
    """

    agreed: float
    interval: Interval
    identical: Proportion
    new_tokens: int

    def to_json(self) -> dict[str, Any]:
        return {
            "greedy_agreement": self.agreed,
            "interval": list(self.interval),
            "identical": self.identical.hits,
            "prompts": self.identical.count,
            "new_tokens": self.new_tokens,
        }


@dataclass(frozen=True)
class GreedyReference:
    """What the original says after prompts [count, length]: its tokens [count, new tokens]."""

    prompts: Tensor
    said: Tensor

    @classmethod
    def record(cls, model: nn.Module, prompts: Tensor, new_tokens: int = NEW_TOKENS) -> GreedyReference:
        """Let the original go on greedily, past any end of text."""
        return cls(prompts.cpu(), continuation(model, prompts, new_tokens))

    def compare(self, model: nn.Module) -> GreedyAgreement:
        """Let another model go on, and see for how long it says the same."""
        said = continuation(model, self.prompts, self.said.shape[1])
        same = (said == self.said).long().cumprod(1).double()
        agreed = same.sum(1)
        whole = Proportion(int((agreed == said.shape[1]).sum()), len(said))
        return GreedyAgreement(float(same.mean()), mean_interval(same.mean(1, keepdim=True)), whole, said.shape[1])


def continuation(model: nn.Module, prompts: Tensor, new_tokens: int) -> Tensor:
    """The tokens [count, new_tokens] that `model.generate` gives greedily after prompts [count, length].

    Raises MeasureError for a model that cannot generate.
    """
    check_measurable(model)
    if not callable(getattr(model, "generate", None)):
        raise MeasureError(f"{type(model).__name__} has no generate(): there is no continuation to compare")
    ids = prompts.to(input_device(model))
    with torch.no_grad():
        whole = model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=torch.ones_like(ids), **greedy_options(model, new_tokens)
        )
    said: Tensor = whole[:, ids.shape[1] :].cpu()
    return said
