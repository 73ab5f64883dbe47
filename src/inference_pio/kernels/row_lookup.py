"""Rows of a table of codes by their numbers, made weights as they are looked up; the plain truth first."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from inference_pio.kernels.row_codes import scaled_values


def naive_row_lookup(ids: Tensor, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows `ids` [...] of the weights that codes [N, K] with scales [N] stand for: [..., K], from the whole table."""
    return scaled_values(codes, scale, torch.float32)[ids].to(dtype)


def row_lookup(ids: Tensor, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The same, of which only the rows that are asked for are read; nothing waits for the device.

    >>> codes, scale = torch.tensor([[2, 4], [6, 8]], dtype=torch.int8), torch.tensor([0.5, 2.0]).bfloat16()
    >>> row_lookup(torch.tensor([1, 0]), codes, scale, torch.float32).tolist()
    [[12.0, 16.0], [1.0, 2.0]]
    """
    return scaled_values(F.embedding(ids, codes), F.embedding(ids, scale[:, None]).squeeze(-1), dtype)
