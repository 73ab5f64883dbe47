"""Every code of a byte becomes its number in a kernel: interpreted, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.kernels.fp8 import FP8
from inference_pio.kernels.triton.gemv_launch import GemvLaunch

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


def check(device: str = "cpu") -> None:
    """Each code by itself: rows of one input, so that a product is the code's number times the scale."""
    from inference_pio.kernels.triton.gemv import gemv

    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[(codes & 0x7F) != 0x7F].to(device)[:, None]  # those two are no numbers
    one, scale = torch.ones(1, 1, device=device), torch.full((len(codes),), 0.5, device=device)
    for weight, wanted in ((codes, codes.view(FP8).float()), (codes.view(torch.int8), codes.view(torch.int8).float())):
        found = gemv(one, [weight], scales=[scale], launch=GemvLaunch(1, 32, 1))
        assert torch.equal(found[0], wanted[:, 0] * 0.5)


@needs_triton
def test_every_code_is_its_number_in_the_interpreter(interpreted: Callable[..., None]) -> None:
    interpreted(check)


@pytest.mark.gpu
def test_gpu_every_code_is_its_number() -> None:
    check("cuda")
