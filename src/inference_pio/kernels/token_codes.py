"""Activations in eight bits, each token by itself: codes and one float32 scale a token; the plain truth first."""

from __future__ import annotations

import torch
from torch import Tensor

from inference_pio.compat import has_triton
from inference_pio.kernels.fp8 import FP8, LARGEST
from inference_pio.kernels.int8 import LARGEST_CODE

LARGEST_OF = {torch.int8: float(LARGEST_CODE), FP8: LARGEST}
"""The largest code of a kind; the largest activation of a token gets it."""
BLOCK_ELEMENTS = 2**19
"""Activations that are worked on at a time on a CPU: their float32 stays in its caches."""


def naive_code_tokens(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes [M, K] and scales [M] of `x` [M, K] by definition; a scale that would be zero is 1."""
    rows = x.float()
    largest = rows.abs().amax(-1) if x.shape[-1] else rows.new_zeros(len(rows))
    scale = largest / torch.full_like(largest, LARGEST_OF[kind])  # by one number torch's GPU kernels divide roughly
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)  # all zero, or too small to be held
    codes = (rows / scale[:, None]).clamp(-LARGEST_OF[kind], LARGEST_OF[kind])
    return (codes.round() if kind is torch.int8 else codes).to(kind), scale


def code_tokens(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """The same in one pass over memory: int8, or fp8 (`torch.float8_e4m3fn`).

    >>> codes, scale = code_tokens(torch.tensor([[254.0, -127.0, 3.0], [0.0, 0.0, 0.0]]), torch.int8)
    >>> codes.tolist(), scale.tolist()
    ([[127, -64, 2], [0, 0, 0]], [2.0, 1.0])
    """
    if choose_token_backend(x, kind) == "triton":
        from inference_pio.kernels.triton.token_codes import code_tokens as in_one_launch

        return in_one_launch(x, kind)
    if x.device.type != "cpu" or x.numel() <= BLOCK_ELEMENTS:
        return naive_code_tokens(x, kind)
    rows = max(1, BLOCK_ELEMENTS // x.shape[1])
    parts = [naive_code_tokens(x[start : start + rows], kind) for start in range(0, len(x), rows)]
    return torch.cat([codes for codes, _ in parts]), torch.cat([scale for _, scale in parts])


def choose_token_backend(x: Tensor, kind: torch.dtype) -> str:
    """What codes tokens there: "triton" in one launch on a GPU, else "torch"."""
    if not x.is_cuda or not has_triton() or torch.compiler.is_compiling():
        return "torch"
    from inference_pio.kernels.triton.token_codes import supports_token_codes

    return "triton" if supports_token_codes(x, kind) else "torch"
