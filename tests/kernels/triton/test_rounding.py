"""What a kernel rounds between two operations takes on the values that the dtype can hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from inference_pio.compat import has_triton
from tests.sweep import marks_of

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


def check(dtype: torch.dtype, device: str = "cpu", count: int = 5000) -> None:
    """Through the norm of rows of one element, whose result is its sign times the weight: halves go to even."""
    from inference_pio.kernels.triton.rms_norm import add_rms_norm

    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(count, 1, generator=generator).to(device, dtype) for _ in range(2))
    _, summed = add_rms_norm(x, residual, torch.ones(1, device=device, dtype=dtype), 0.0)
    assert torch.equal(summed, residual + x)
    halves = torch.arange(256, 768, device=device)[:, None].to(dtype)  # plus a half: between two numbers of bfloat16
    _, summed = add_rms_norm(torch.full_like(halves, 0.5), halves, torch.ones(1, device=device, dtype=dtype), 0.0)
    assert torch.equal(summed, halves + 0.5)


@needs_triton
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(dtype, marks=marks_of(place, of=3))
        for place, dtype in enumerate((torch.bfloat16, torch.float32, torch.float16))
    ],
)
def test_it_rounds_to_the_nearest_in_the_interpreter(dtype: torch.dtype, interpreted: Callable[..., None]) -> None:
    interpreted(check, dtype, "cpu", 1000)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu_it_rounds_to_the_nearest(dtype: torch.dtype) -> None:
    check(dtype, "cuda")
