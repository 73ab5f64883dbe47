"""From logits to the next token on the device: the library's processors in their order, without looking at the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation import logits_process as library

from inference_pio.decoding.slots import Slots

Stage = Callable[[Tensor, Slots], Tensor]
"""`stage(scores float32 [B, V], slots) -> scores`."""

OF_THE_SCORES_ALONE = (
    library.TemperatureLogitsWarper,
    library.TopKLogitsWarper,
    library.TopPLogitsWarper,
    library.MinPLogitsWarper,
    library.TypicalLogitsWarper,
    library.EpsilonLogitsWarper,
    library.EtaLogitsWarper,
    library.LogitNormalization,
    library.InfNanRemoveLogitsProcessor,
)
"""Processors that read no tokens and never wait for the device: they are called as they are."""


@dataclass(frozen=True)
class Recipe:
    """How tokens are chosen. Two recipes with one `key` choose alike, so that a recorded step serves both.

    `marks`: tokens that a row holds are marked in the slots, those before `unmarked` (of all rows, or [B]) left out.
    """

    key: str
    stages: tuple[Stage, ...]
    sampled: bool
    marks: bool = False
    unmarked: Tensor | int | None = None

    @property
    def best_alone(self) -> bool:
        """Whether the best token by the bare logits is chosen, and nothing is marked."""
        return not (self.stages or self.sampled or self.marks)

    def choose(self, logits: Tensor, slots: Slots) -> Tensor:
        """The next tokens, int64 [B], of logits float32 [B, V]."""
        for stage in self.stages:
            logits = stage(logits, slots)
        return draw(logits, sampled=self.sampled)


def recipe_of(processors: Sequence[Any], *, sampled: bool, prompt: int, device: torch.device) -> Recipe | str:
    """The recipe that does what these processors do behind a prompt of so many tokens, or which of them it cannot be.

    >>> recipe_of([library.TopKLogitsWarper(5)], sampled=True, prompt=9, device=torch.device("cpu")).key
    "sample TopKLogitsWarper(top_k=5, filter_value=-inf)"
    """
    stages: list[Stage] = []
    keys = ["sample" if sampled else "argmax"]
    marks, unmarked = False, None
    for processor in processors:
        kind = type(processor)
        key = _told(processor)
        if kind in OF_THE_SCORES_ALONE:
            stages.append(_as_it_is(processor))
        elif kind is library.RepetitionPenaltyLogitsProcessor:
            stages.append(_penalty(float(processor.penalty)))
            marks, unmarked = True, processor.prompt_ignore_length
            key = f"penalty {processor.penalty}"
        elif kind in (library.MinNewTokensLengthLogitsProcessor, library.MinLengthLogitsProcessor):
            first = processor.min_new_tokens if hasattr(processor, "min_new_tokens") else processor.min_length - prompt
            stages.append(_no_end_before(first, processor.eos_token_id.to(device)))
            key = f"no {processor.eos_token_id.tolist()} before {first}"
        else:
            return f"{kind.__name__} runs on the host"
        keys.append(key)
    return Recipe(" ".join(keys), tuple(stages), sampled, marks, unmarked)


def draw(scores: Tensor, *, sampled: bool) -> Tensor:
    """The best token of each row, or one by chance: the largest of shares over exponentials, as torch's own
    `multinomial` draws a single one, without its look at the host.
    """
    if not sampled:
        return scores.argmax(-1)
    shares = torch.softmax(scores, -1)
    return (shares / torch.empty_like(shares).exponential_(1)).argmax(-1)


def _as_it_is(processor: Any) -> Stage:
    return lambda scores, slots: processor(None, scores)


def _penalty(penalty: float) -> Stage:
    def stage(scores: Tensor, slots: Slots) -> Tensor:
        assert slots.seen is not None
        return torch.where(slots.seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)

    return stage


def _no_end_before(tokens: int, ends: Tensor) -> Stage:
    def stage(scores: Tensor, slots: Slots) -> Tensor:
        barred = scores.index_fill(1, ends, float("-inf"))
        return torch.where(slots.made < tokens, barred, scores)

    return stage


def _told(processor: Any) -> str:
    values = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in vars(processor).items()}
    return f"{type(processor).__name__}({', '.join(f'{name}={value}' for name, value in values.items())})"
