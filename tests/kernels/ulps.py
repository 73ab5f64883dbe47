"""How far apart two tensors are, in steps from one number that their dtype can hold to the next."""

from __future__ import annotations

import torch

INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def ulps_apart(one: torch.Tensor, other: torch.Tensor) -> int:
    """The most steps between two numbers of one place.

    >>> ulps_apart(torch.tensor([1.0, -0.0]), torch.tensor([1.0 + 2**-23, 0.0]))
    1
    """
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert torch.equal(one.isfinite(), other.isfinite())
    steps = (_ranks(one) - _ranks(other)).abs()
    return int(steps.max()) if steps.numel() else 0


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same numbers; zeros of both signs are one number."""
    return ulps_apart(one, other) == 0


def _ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The place of each number among all that the dtype can hold, in their order."""
    bits = tensor.contiguous().view(INTEGERS[tensor.dtype]).long()
    return torch.where(bits < 0, torch.iinfo(INTEGERS[tensor.dtype]).min - bits, bits)
