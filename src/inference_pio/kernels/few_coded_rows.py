"""A few rows times weights that are codes, by our kernel on a GPU; the plain truths stand beside each kind of codes."""

from __future__ import annotations

import torch
from torch import Tensor

from inference_pio.kernels.triton.row_support import MOST_ROWS
from inference_pio.kernels.triton.support import ELEMENTWISE_DTYPES, supports_device


def runs_few_coded_rows(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether our kernel multiplies codes on a device, for activations of a dtype."""
    return device.type == "cuda" and dtype in ELEMENTWISE_DTYPES and bool(supports_device(device))


def few_coded_rows(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor | None:
    """`x` [..., K] times codes [N, K] with scales [N], or words with grids: [..., N]; None for more than 8 rows, and
    for a compiler, which sees torch's operations and fuses them.
    """
    from inference_pio.kernels.triton.gemv import gemv

    rows = x.detach().reshape(-1, x.shape[-1])
    if torch.compiler.is_compiling() or not 1 <= len(rows) <= MOST_ROWS or rows.stride(-1) != 1:
        return None
    return gemv(rows, [codes], scales=[scale]).view(*x.shape[:-1], -1)
