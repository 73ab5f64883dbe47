"""Losses and divergences token by token, in float64, a few rows at a time so that the memory stays small."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# About 10 rows of a vocabulary of 49,152. On 2 cores 512 rows take 119 ms in chunks of 8, 465 ms in one piece.
CPU_CHUNK_ELEMENTS = 2**19
CUDA_CHUNK_ELEMENTS = 2**26


def naive_divergences(original: Tensor, optimized: Tensor) -> Tensor:
    """KL(original ‖ optimized) in nats of each row of logits [tokens, vocabulary]; float64 [tokens].

    >>> naive_divergences(torch.zeros(2, 5), torch.zeros(2, 5))
    tensor([0., 0.], dtype=torch.float64)
    """
    log_p, log_q = original.double().log_softmax(-1), optimized.double().log_softmax(-1)
    # a token that the original holds impossible adds nothing, whatever the other says
    return torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q)).sum(-1).clamp_(min=0.0)


def naive_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The negative log-likelihood in nats of `targets` [tokens] under logits [tokens, vocabulary]; float64 [tokens]."""
    return -logits.double().log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """`naive_losses`, row chunk by row chunk; float64 [tokens] on the CPU."""
    return torch.cat([naive_losses(logits[rows], targets[rows]) for rows in _chunks(logits)]).cpu()


def token_divergences(original: Tensor, optimized: Tensor) -> Tensor:
    """`naive_divergences`, row chunk by row chunk; float64 [tokens] on the CPU."""
    return torch.cat([naive_divergences(original[rows], optimized[rows]) for rows in _chunks(optimized)]).cpu()


def _chunks(logits: Tensor) -> Iterator[slice]:
    elements = CUDA_CHUNK_ELEMENTS if logits.is_cuda else CPU_CHUNK_ELEMENTS
    rows = max(1, elements // logits.shape[-1])
    return (slice(start, start + rows) for start in range(0, logits.shape[0], rows))
