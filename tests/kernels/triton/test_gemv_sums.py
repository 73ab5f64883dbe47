"""Sums by threads: their bits depend on the columns of a step, and on nothing else of a launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.kernels.triton.gemv_launch import GemvLaunch
from tests.kernels.triton.test_gemv import EVERYTHING, Case, problem

pytestmark = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")

LAUNCHES = [GemvLaunch(1, 256, 1), GemvLaunch(1, 256, 2), GemvLaunch(2, 256, 1), GemvLaunch(4, 256, 2)]
CASE = replace(EVERYTHING, inputs=640, strided=False)


def products(case: Case, launch: GemvLaunch, device: str = "cpu") -> torch.Tensor:
    from inference_pio.kernels.triton.gemv import gemv

    x, weights, given = problem(case, device)
    out = torch.empty(case.batch, case.columns, device=device)
    return gemv(x, weights, out=out, launch=launch, **given)


def check(case: Case, device: str = "cpu") -> None:
    first, *others = (products(case, launch, device) for launch in LAUNCHES)
    assert all(torch.equal(first, other) for other in others)
    assert not torch.equal(first, products(case, GemvLaunch(1, 512, 1), device))


def test_rows_and_warps_do_not_show_in_a_bit(interpreted: Callable[..., None]) -> None:
    interpreted(check, CASE)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 2])
def test_gpu_rows_and_warps_do_not_show_in_a_bit(batch: int) -> None:
    check(replace(CASE, batch=batch, inputs=2560, outputs=(300, 300)), "cuda")
