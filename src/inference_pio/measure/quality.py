"""How much of the original's answers an optimized model kept: perplexity, KL divergence and top-1 agreement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.errors import MeasureError
from inference_pio.measure.divergence import token_divergences, token_losses
from inference_pio.measure.greedy import GreedyAgreement
from inference_pio.measure.interval import Interval, mean_interval
from inference_pio.measure.logits import check_tokens, window_logits
from inference_pio.measure.reference import Reference
from inference_pio.measure.target import check_measurable

__all__ = ["Perplexity", "Quality", "Reference", "compare", "measure_perplexity"]

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Perplexity:
    """The perplexity of one model on `tokens` scored tokens, with its 95% interval."""

    perplexity: float
    perplexity_interval: Interval
    tokens: int


@dataclass(frozen=True)
class Quality:
    """One model beside its original on the same tokens, each number with its 95% interval.

    `perplexity_ratio` is paired token by token, so its interval is far tighter than those of the two perplexities.
    """

    perplexity: float
    perplexity_interval: Interval
    kl_nats_per_token: float
    kl_interval: Interval
    top1_agreement: float
    top1_interval: Interval
    tokens: int
    reference_perplexity: float
    reference_perplexity_interval: Interval
    perplexity_ratio: float
    perplexity_ratio_interval: Interval
    greedy: GreedyAgreement | None = None

    def to_json(self) -> dict[str, Any]:
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {**plain, "greedy": self.greedy.to_json() if self.greedy else None}


def measure_perplexity(model: nn.Module, tokens: Tensor, progress: Progress | None = None) -> Perplexity:
    """The perplexity of `model` on tokens [windows, window], with no original to compare it with."""
    check_measurable(model)
    check_tokens(tokens)
    rows = []
    for window in range(tokens.shape[0]):
        logits = window_logits(model, tokens, window)
        rows.append(token_losses(logits, tokens[window, 1:].to(logits.device)))
        if progress:
            progress("quality", (window + 1) / tokens.shape[0])
    losses = torch.stack(rows)
    return Perplexity(float(losses.mean().exp()), _exp(mean_interval(losses)), losses.numel())


def compare(reference: Reference, model: nn.Module, progress: Progress | None = None) -> Quality:
    """Judge `model` by what the original said of the same tokens.

    Raises MeasureError where the two know different vocabularies, or where the logits are NaN.
    """
    check_measurable(model)
    windows = reference.tokens.shape[0]
    losses, divergences, agreements = (torch.empty_like(reference.losses) for _ in range(3))
    for window in range(windows):
        optimized = window_logits(model, reference.tokens, window)
        _check_vocabularies(reference, optimized)
        original = reference.logits(window).to(optimized.device)
        losses[window] = token_losses(optimized, reference.tokens[window, 1:].to(optimized.device))
        divergences[window] = token_divergences(original, optimized)
        agreements[window] = (original.argmax(-1) == optimized.argmax(-1)).double().cpu()
        if progress:
            progress("quality", (window + 1) / windows)
    greedy = reference.greedy.compare(model) if reference.greedy else None
    return replace(_judge(reference, losses, divergences, agreements), greedy=greedy)


def _judge(reference: Reference, losses: Tensor, divergences: Tensor, agreements: Tensor) -> Quality:
    change = losses - reference.losses
    return Quality(
        perplexity=float(losses.mean().exp()),
        perplexity_interval=_exp(mean_interval(losses)),
        kl_nats_per_token=float(divergences.mean()),
        kl_interval=mean_interval(divergences),
        top1_agreement=float(agreements.mean()),
        top1_interval=mean_interval(agreements),
        tokens=losses.numel(),
        reference_perplexity=reference.perplexity,
        reference_perplexity_interval=reference.perplexity_interval,
        perplexity_ratio=float(change.mean().exp()),
        perplexity_ratio_interval=_exp(mean_interval(change)),
    )


def _exp(interval: Interval) -> Interval:
    low, high = torch.tensor(interval, dtype=torch.float64).exp().tolist()
    return low, high


def _check_vocabularies(reference: Reference, logits: Tensor) -> None:
    if logits.shape[-1] != reference.vocab_size:
        raise MeasureError(
            f"the original knew {reference.vocab_size} tokens and this model knows {logits.shape[-1]}: "
            "only models of one vocabulary can be compared"
        )
