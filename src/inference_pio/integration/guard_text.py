"""The held-out tokens that a quality guard judges by, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.calibration.source import calibration_source, tokenizer_beside
from inference_pio.errors import InvalidSetting, MeasureError
from inference_pio.measure.logits import window_logits
from inference_pio.measure.target import check_measurable, max_positions, vocab_size
from inference_pio.measure.text import evaluation_tokens, text_source

TOKENS = 2048
"""Scored tokens: the standard error of a mean divergence is then some 4% of it, and the logits that are kept on disk
take 0.6 GB for a vocabulary of 151,936 in bfloat16."""
WINDOW = 513
"""One token more than are scored: four windows make `TOKENS`."""
WAY_OUT = "without max_kl and max_perplexity_ratio nothing is measured. The model is as before the call."
OTHER_SEED = 1
"""What optimizations learn from where there is no tokenizer is sampled with seed 0."""


FEW_WORDS = "The quick brown fox jumps over the lazy dog; 1234567890 (self.x += 0.5) is naïve?\n\t"


@dataclass(frozen=True)
class GuardText:
    """Tokens [windows, window], and what they are in words."""

    tokens: Tensor
    source: str

    @property
    def scored(self) -> int:
        return int(self.tokens.shape[0] * (self.tokens.shape[1] - 1))


def check_judgeable(model: nn.Module) -> None:
    """Raise MeasureError, with the way out, for a model that no text can judge; nothing is run."""
    try:
        check_measurable(model)
    except MeasureError as error:
        raise MeasureError(f"a quality guard cannot judge this model: {error}. {WAY_OUT}") from error


def guard_text(model: nn.Module, tokenizer: Any = None) -> GuardText:
    """The evaluation part of the default text, with the tokenizer that is given or lies where the model comes from.

    Without one, what the model itself says with another seed than calibration has. Raises MeasureError, with the way
    out, where no tokens can be had.
    """
    check_judgeable(model)
    window = min(WINDOW, max_positions(model) or WINDOW)
    if window < 2:
        raise MeasureError(f"a quality guard cannot judge this model: it takes {window} tokens at most. {WAY_OUT}")
    known = vocab_size(model)
    found = tokenizer if tokenizer is not None else tokenizer_beside(model)
    if found is not None:
        return GuardText(evaluation_tokens(found, known, TOKENS, window), text_source())
    if not callable(getattr(model, "generate", None)) or not known:
        raise MeasureError(
            f"a quality guard needs tokens to judge this {type(model).__name__} by, and has none: there is no "
            f"tokenizer, and the model generates none itself. Give tokenizer=..., or do without: {WAY_OUT}"
        )
    return _sampled(model, window)


def reading_of(model: nn.Module, tokenizer: Any = None) -> str:
    """What tells one tokenizer's text from another's: the tokens of a few words; nothing where there is none."""
    found = tokenizer if tokenizer is not None else tokenizer_beside(model)
    return "" if found is None else str(found(FEW_WORDS)["input_ids"])


def _sampled(model: nn.Module, window: int) -> GuardText:
    windows = -(-TOKENS // (window - 1))
    window_logits(model, torch.zeros(1, 2, dtype=torch.int64), 0)  # says in words what sampling from NaN would not
    try:
        source = calibration_source(model, tokens=windows * window, window=window, seed=OTHER_SEED)
    except InvalidSetting as error:
        raise MeasureError(f"a quality guard has no tokens to judge by: {error}") from error
    rows = [batch["input_ids"] for batch in source.batches]
    return GuardText(torch.cat(rows), f"text {source.name}")
