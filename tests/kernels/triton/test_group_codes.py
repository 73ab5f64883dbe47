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
    """Each input by itself: x is one unit vector after another, so that a product is a code on its group's grid. Of
    rows in parts each 29th, which is another one of each group."""
    from inference_pio.kernels.triton.gemv import gemv

    rows, columns, group = 5, 128 * launch.parts, 128 if launch.stages else 32
    codes = torch.randint(0, 16, (rows, columns), generator=torch.Generator().manual_seed(1))
    step = (2.0 ** (torch.arange(columns // group) % 5 - 1))[:, None].expand(-1, rows)
    grids = torch.stack([step, torch.full_like(step, 3.0)], -1).to(device, torch.bfloat16)
    words = words_of(pack_codes(codes)).to(device)
    wanted = (codes - 8) * step.T.repeat_interleave(group, 1) + 3
    for units in torch.arange(0, columns, 29 if launch.parts > 1 else 1).split(8 // launch.parts):
        x = torch.zeros(len(units), columns)
        x[torch.arange(len(units)), units] = 1.0
        out = torch.empty(len(units), rows, device=device)
        found = gemv(x.to(device, dtype), [words], scales=[grids], launch=launch, out=out)
        assert torch.equal(found.cpu().T, wanted[:, units])


@needs_triton
@pytest.mark.parametrize("launch", BY_THREADS, ids=str)
def test_every_code_is_its_number_in_its_place(launch: GemvLaunch, interpreted: Callable[..., None]) -> None:
    interpreted(check, launch)


@pytest.mark.gpu
@pytest.mark.parametrize("launch", BY_THREADS, ids=str)
def test_gpu_every_code_is_its_number_in_its_place(launch: GemvLaunch) -> None:
    check(launch, "cuda")
