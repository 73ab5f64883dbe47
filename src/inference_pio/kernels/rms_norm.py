"""RMSNorm with every rounding of the library, alone or after an addition: the plain truth first."""

from __future__ import annotations

import torch

from inference_pio.kernels.elementwise_backend import TRITON, choose_for


def naive_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`x` [..., H] row by row: normalised in float32, rounded to its dtype, then times `weight` in that dtype."""
    rows = []
    for row in x.reshape(-1, x.shape[-1]).float():
        mean_square = (row * row).sum() / len(row)
        rows.append(weight * (row * torch.rsqrt(mean_square + eps)).to(x.dtype))
    return torch.stack(rows).view(x.shape) if rows else weight * x


def choose_rms_norm_backend(x: torch.Tensor, weight: torch.Tensor) -> str:
    """ "triton" where its kernel serves these tensors, else "torch"."""
    return choose_for(x, weight)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of `x` [..., H]; on torch the library's bits, in Triton the sum may be taken in another order.

    >>> rms_norm(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), 0.0)
    tensor([0.8485, 2.2627])
    """
    if choose_rms_norm_backend(x, weight) == TRITON:
        from inference_pio.kernels.triton.rms_norm import rms_norm as fused

        return fused(x, weight, eps)
    wide = x.float()
    normed = wide * wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return weight * normed.to(x.dtype)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`residual + x` in their dtype, and its RMSNorm: (normed, summed).

    >>> add_rms_norm(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 2.0]), torch.ones(2), 0.0)
    (tensor([0.8485, 1.1314]), tensor([3., 4.]))
    """
    if choose_for(x, residual, weight) == TRITON and x.shape == residual.shape:
        from inference_pio.kernels.triton.rms_norm import add_rms_norm as fused

        return fused(x, residual, weight, eps)
    summed = residual + x
    return rms_norm(summed, weight, eps), summed
