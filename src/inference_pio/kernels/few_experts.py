"""The chosen experts of a few tokens in two launches, on a GPU; the plain truths stand in `kernels.experts`."""

from __future__ import annotations

import torch
from torch import Tensor

from inference_pio.kernels.elementwise_backend import TRITON, choose_elementwise_backend
from inference_pio.kernels.row_codes import in_groups
from inference_pio.kernels.triton.row_support import MOST_ROWS, supports_rows

Held = tuple[Tensor, Tensor | None]
"""Weights of all experts, or codes of them with their scales."""


def choose_few_experts_backend(device: torch.device, dtype: torch.dtype) -> str:
    """ "triton" where the experts of up to 8 tokens take two launches, "torch" where each expert takes its own.

    >>> choose_few_experts_backend(torch.device("cpu"), torch.bfloat16)
    'torch'
    """
    return choose_elementwise_backend(device, dtype)


def few_experts(x: Tensor, gate_up: Held, down: Held, index: Tensor, weight: Tensor) -> Tensor | None:
    """What the chosen experts make of `x` [M, H], weighted and summed, [M, H]; None where the kernels do not serve.

    `gate_up` [E, 2I, H] and `down` [E, H, I]; `index` and `weight` [M, k]. Gates are SiLU. An index of E or more stands
    for an expert that lives elsewhere, and adds nothing. Nothing waits for the device.
    """
    if choose_few_experts_backend(x.device, x.dtype) != TRITON or not _serves(x, gate_up, down, index, weight):
        return None
    from inference_pio.kernels.triton.experts import expert_down, expert_gate_up

    index = index.contiguous()
    hidden = expert_gate_up(x, gate_up[0], index, scales=gate_up[1])
    return expert_down(hidden, down[0], index, weight.contiguous(), scales=down[1])


def _serves(x: Tensor, gate_up: Held, down: Held, index: Tensor, weight: Tensor) -> bool:
    """Whether tokens are few, nothing is learned or compiled, and codes lie as a GPU reads them."""
    few = 1 <= len(x) <= MOST_ROWS and len(x) == len(index) and index.shape == weight.shape and index.shape[1] > 0
    if not few or torch.compiler.is_compiling() or (torch.is_grad_enabled() and weight.requires_grad):
        return False
    for codes, scales in (gate_up, down):
        if scales is not None and not scales.is_contiguous():
            return False
        if in_groups(codes, scales) and codes.dtype is not torch.int32:
            return False
    return bool(supports_rows(x, gate_up[0], down[0], codes=True))
