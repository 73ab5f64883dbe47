"""The same by the matrix units: every code in its place, few instructions, and nothing waited for that is not there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.triton.gemv_choice import choose_gemv_launch
from inference_pio.kernels.triton.gemv_launch import GemvLaunch
from tests.kernels.triton.compiling import MACHINES, Compiler
from tests.kernels.triton.test_gemv import REAL, compiled
from tests.kernels.triton.test_group_codes import check

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
ONE_WARP, TWO_WARPS = GemvLaunch(16, 128, 1, stages=3), GemvLaunch(16, 256, 2, stages=3)
TWO_GROUPS = GemvLaunch(16, 256, 1, stages=3)


@needs_triton
@pytest.mark.parametrize("launch", [ONE_WARP, TWO_WARPS, TWO_GROUPS], ids=str)
def test_every_code_is_its_number_in_its_place(launch: GemvLaunch, interpreted: Callable[..., None]) -> None:
    interpreted(check, launch, "cpu", torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("launch", [ONE_WARP, TWO_WARPS, TWO_GROUPS], ids=str)
def test_gpu_every_code_is_its_number_in_its_place(launch: GemvLaunch) -> None:
    check(launch, "cuda", torch.bfloat16)


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("batch", [3, 8])
@pytest.mark.parametrize("name", ["qkv", "gate_up", "down"])
def test_codes_travel_as_codes_and_cost_few_instructions(
    name: str, batch: int, capability: int, compiler: Compiler
) -> None:
    case = replace(REAL[name], batch=batch, group=128)
    code = compiled(compiler, capability, case)
    code.assert_it_fits(MACHINES[capability])
    launch = choose_gemv_launch(
        MACHINES[capability], batch, sum(case.outputs), case.inputs, 0.5, gated=case.gated, group=128
    )
    weights, tiles = 2 if case.gated else 1, launch.rows // 16
    groups = launch.columns // (128 * launch.warps)
    # a group of 16 rows is eight products, and so are those with ones, which all rows may share
    assert 8 * groups * (weights * tiles + 1) <= code.counts["HMMA"] <= 8 * groups * (weights + 1) * tiles, code
    copied = 2 * weights * tiles * groups  # of 16 rows, 64 bytes a group
    assert code.counts["LDGSTS 128"] >= launch.stages * copied, code
    assert code.counts["I2F"] <= 1, code
    assert not code.counts["LDG U8"], code


@needs_triton
def test_other_groups_and_shares_are_refused() -> None:
    for launch, group in ((TWO_WARPS, 64), (GemvLaunch(16, 256, 4, stages=2), 128)):
        with pytest.raises(InvalidSetting, match="matrix units take groups of 128, one or more a warp"):
            launch.require(MACHINES[90], torch.bfloat16, group)
