"""Codes of half a byte become numbers by their bits, in the order of the inputs: interpreted, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.kernels.int4 import pack_codes, words_of
from inference_pio.kernels.triton.gemv_launch import GemvLaunch

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
BY_THREADS = [GemvLaunch(1, 256, 1), GemvLaunch(2, 512, 1), GemvLaunch(4, 1024, 1)]


def check(launch: GemvLaunch, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
    """Each input by itself: x is one unit vector after another, so that a product is a code on its group's grid."""
    from inference_pio.kernels.triton.gemv import gemv

    rows, columns, group = 5, 128, 128 if launch.stages else 32
    codes = torch.randint(0, 16, (rows, columns), generator=torch.Generator().manual_seed(1))
    step = torch.tensor([1.0, 0.5, 2.0, 4.0][: columns // group])[:, None].expand(-1, rows)
    grids = torch.stack([step, torch.full_like(step, 3.0)], -1).to(device, torch.bfloat16)
    words = words_of(pack_codes(codes)).to(device)
    wanted = (codes - 8) * step.T.repeat_interleave(group, 1) + 3
    for first in range(0, columns, 8):
        x = torch.zeros(8, columns)
        x[torch.arange(8), first + torch.arange(8)] = 1.0
        out = torch.empty(8, rows, device=device)
        found = gemv(x.to(device, dtype), [words], scales=[grids], launch=launch, out=out)
        assert torch.equal(found.cpu().T, wanted[:, first : first + 8])


@needs_triton
@pytest.mark.parametrize("launch", BY_THREADS, ids=str)
def test_every_code_is_its_number_in_its_place(launch: GemvLaunch, interpreted: Callable[..., None]) -> None:
    interpreted(check, launch)


@pytest.mark.gpu
@pytest.mark.parametrize("launch", BY_THREADS, ids=str)
def test_gpu_every_code_is_its_number_in_its_place(launch: GemvLaunch) -> None:
    check(launch, "cuda")
