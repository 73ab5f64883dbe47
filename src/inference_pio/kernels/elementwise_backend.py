"""What runs the elementwise kernels: Triton on an NVIDIA GPU that has it, else torch."""

from __future__ import annotations

import functools

import torch

from inference_pio.kernels.triton.support import ELEMENTWISE_DTYPES, supports_device

TRITON, TORCH = "triton", "torch"


@functools.cache
def choose_elementwise_backend(device: torch.device, dtype: torch.dtype) -> str:
    """ "triton" or "torch" for tensors of a dtype on a device: said in receipts, decided here alone.

    >>> choose_elementwise_backend(torch.device("cpu"), torch.bfloat16)
    'torch'
    """
    on_gpu = device.type == "cuda" and dtype in ELEMENTWISE_DTYPES
    return TRITON if on_gpu and supports_device(device) else TORCH


def choose_for(first: torch.Tensor, *others: torch.Tensor | None) -> str:
    """The backend for one call: torch where gradients are wanted, or where the dtypes differ from one another."""
    if not first.is_cuda:
        return TORCH
    given = [first, *(tensor for tensor in others if tensor is not None)]
    if any(tensor.dtype != first.dtype or tensor.stride(-1) != 1 for tensor in given):
        return TORCH
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return TORCH
    return choose_elementwise_backend(first.device, first.dtype)
