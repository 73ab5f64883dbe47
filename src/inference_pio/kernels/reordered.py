"""Rows in another order of their columns, or the RMSNorm of rows in it: the plain truth first."""

from __future__ import annotations

import torch

from inference_pio.kernels.elementwise_backend import TRITON, choose_for
from inference_pio.kernels.rms_norm import naive_rms_norm, rms_norm


def naive_reordered(x, order, norm_weight=None, eps=0.0):
    """`x` [M, H], column by column."""
    rows = x if norm_weight is None else naive_rms_norm(x, norm_weight, eps)
    return torch.stack([rows[:, column] for column in order.tolist()], -1)


def reordered(
    x: torch.Tensor, order: torch.Tensor, norm_weight: torch.Tensor | None = None, eps: float = 0.0
) -> torch.Tensor:
    """The columns `order` [H] of `x` [M, H]; with `norm_weight` [H], of its RMSNorm, which its kernel takes along.

    >>> reordered(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([2, 0, 1], dtype=torch.int32))
    tensor([[3., 1., 2.]])
    """
    if norm_weight is None:
        return x.index_select(-1, order)
    if choose_for(x, norm_weight) == TRITON:
        from inference_pio.kernels.triton.reordered import reordered_norm

        return reordered_norm(x, order, norm_weight, eps)
    return rms_norm(x, norm_weight, eps).index_select(-1, order)
