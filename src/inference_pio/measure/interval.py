"""How sure a mean over tokens is: a 95% bootstrap over blocks of neighbouring tokens, which depend on one another."""

from __future__ import annotations

import torch
from torch import Tensor

Interval = tuple[float, float]

BLOCK_TOKENS = 128
FEWEST_BLOCKS = 20
RESAMPLES = 2000
LEVEL = 0.95


def mean_interval(values: Tensor, seed: int = 0) -> Interval:
    """The interval of the mean of `values` [windows, tokens]; the same values always give the same answer.

    >>> mean_interval(torch.ones(4, 100))
    (1.0, 1.0)
    """
    sums, counts = _block_sums(values.double().cpu())
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(sums.numel(), (RESAMPLES, sums.numel()), generator=generator)
    means = sums[picks].sum(1) / counts[picks].sum(1)
    edges = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    # nearest, not linear: between two infinite values linear interpolation would give NaN
    low, high = torch.quantile(means, edges, interpolation="nearest").tolist()
    point = float(sums.sum() / counts.sum())
    return min(low, point), max(high, point)


def _block_sums(values: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and length of each block; blocks never span two windows, and short data makes them shorter."""
    length = max(1, min(BLOCK_TOKENS, values.numel() // FEWEST_BLOCKS))
    blocks = [block for window in values for block in window.split(length)]
    return torch.stack([block.sum() for block in blocks]), torch.tensor([float(block.numel()) for block in blocks])
