"""A linear layer of a few rows by our kernel, of more by torch's. The plain truth is `kernels.gemv.naive_gemv`."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from inference_pio.kernels.gemv import gemv_parts
from inference_pio.kernels.triton.row_support import MOST_ROWS, supports_gemv

TRITON, TORCH = "triton", "torch"


def choose_few_rows_backend(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> str:
    """ "triton" for up to 8 rows on a GPU that its kernel serves, else "torch".

    >>> choose_few_rows_backend(torch.ones(1, 4), torch.ones(2, 4))
    'torch'
    """
    return TRITON if x.is_cuda and serves_few_rows(x, weight, bias) else TORCH


def serves_few_rows(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    """Whether our kernel multiplies these, on a GPU or in the interpreter; what does not fit is torch's to refuse."""
    rows = x.shape[:-1].numel()
    alike = x.dtype == weight.dtype and weight.dim() == 2 and x.shape[-1] == weight.shape[1] > 0
    if not 1 <= rows <= MOST_ROWS or not alike or (bias is not None and bias.shape != weight.shape[:1]):
        return False
    flat = x.reshape(rows, -1)
    return bool(supports_gemv(flat, gemv_parts(flat, [weight], biases=None if bias is None else [bias])))


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x` [..., K] times `weight` [N, K], plus `bias` [N]: [..., N].

    >>> linear(torch.tensor([[[1.0, 2.0]]]), torch.eye(2), torch.tensor([0.0, 1.0]))
    tensor([[[1., 3.]]])
    """
    if choose_few_rows_backend(x, weight, bias) == TORCH:
        return F.linear(x, weight, bias)
    from inference_pio.kernels.triton.gemv import gemv

    flat = x.reshape(-1, x.shape[-1])
    return gemv(flat, [weight], biases=None if bias is None else [bias]).view(*x.shape[:-1], -1)
