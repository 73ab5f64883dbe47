"""Scales for channels before their readers' weights are rounded (AWQ): large inputs get finer steps, at no cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 20
"""Powers of the inputs' size that are tried: 1/20 to 1, each with the weights' size taken into account and without."""
MOST_POWERS = 8
"""Scales lie within 2**-8 and 2**8."""
LEAST = 1e-12


@dataclass(frozen=True)
class Reader:
    """Matrices [B, N, K] that read channels, the Gram matrices of their inputs [B, K, K], what rows are rounded to."""

    weight: Tensor
    gram: Tensor
    rounded: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Found:
    """Scales [K], or [B, K], by how they were come by; `loss` is that of rounding with them over rounding without."""

    scales: Tensor
    alpha: float
    weighed: bool
    loss: float


def search_scales(
    readers: Sequence[Reader], *, own: bool = False, whole: bool = False,
    alike: Callable[[Tensor], Tensor] = lambda powers: powers,
) -> Found:  # fmt: skip
    """The scales under which the readers' products change least when their weights are rounded.

    `own`: each matrix of the only reader has channels of its own; one power of the inputs' size serves all. `whole`:
    scales are powers of two, which full weights take in without loss. `alike` gives exponents that must be one and the
    same the same value. Leaving all as it is is among what is tried.
    """
    inputs = sum(_gathered(reader.gram.diagonal(dim1=-2, dim2=-1).double(), own) for reader in readers)
    sizes = sum(_gathered(_column_sizes(reader.weight).double(), own) for reader in readers)
    assert isinstance(inputs, Tensor)
    assert isinstance(sizes, Tensor)
    large, heavy = inputs.sqrt().clamp(min=LEAST).log2(), sizes.clamp(min=LEAST).log2()
    plain = sum(_loss(reader, torch.ones_like(large)) for reader in readers)
    best = Found(torch.ones_like(large), 0.0, False, 1.0)
    for weighed in (False, True):
        for step in range(1, STEPS + 1):
            alpha = step / STEPS
            wished = large * alpha - (heavy * (1 - alpha) if weighed else 0)
            powers = alike(wished - wished.median(-1, keepdim=True).values).clamp(-MOST_POWERS, MOST_POWERS)
            scales = torch.exp2(powers.round() if whole else powers)
            loss = sum(_loss(reader, scales) for reader in readers)
            if loss < best.loss * plain:
                best = Found(scales, alpha, weighed, loss / plain)
    return best


def _gathered(of_matrices: Tensor, own: bool) -> Tensor:
    return of_matrices if own else of_matrices.sum(0)


def _column_sizes(weight: Tensor) -> Tensor:
    """How large each column's weights are beside others of their rows, [B, K]."""
    sizes = weight.detach().abs().float()
    return (sizes / sizes.amax(-1, keepdim=True).clamp(min=LEAST)).sum(-2)


def _loss(reader: Reader, scales: Tensor) -> float:
    """The squared change of the products with the inputs, by rounding."""
    weight, by = reader.weight.detach().float(), scales.float().view(-1, 1, scales.shape[-1])
    rounded = reader.rounded((weight * by).flatten(0, 1)).float().view_as(weight)
    change = rounded / by - weight
    return float(((change @ reader.gram.float()) * change).sum())
