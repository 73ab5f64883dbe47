"""Codes that matrix units take from registers: every code in its place, and none of them moved between threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.triton.gemv_choice import choose_gemv_launch
from inference_pio.kernels.triton.gemv_launch import HELD, GemvLaunch, codes_held
from tests.kernels.triton.compiling import MACHINES, Compiler
from tests.kernels.triton.test_gemv import REAL, Case, compiled
from tests.kernels.triton.test_gemv import check as check_case
from tests.kernels.triton.test_group_codes import check
from tests.sweep import marks_of

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
ONE_WARP, TWO_WARPS = GemvLaunch(16, 128, 1, HELD), GemvLaunch(16, 256, 2, HELD)
TWO_PARTS, FOUR_PARTS = GemvLaunch(8, 256, 2, HELD, parts=2), GemvLaunch(4, 128, 1, HELD, parts=4)
EIGHT_PARTS = GemvLaunch(2, 128, 1, HELD, parts=8)
LAUNCHES = [ONE_WARP, TWO_WARPS, TWO_PARTS, FOUR_PARTS, EIGHT_PARTS]
BYTES = [GemvLaunch(16, 64, 1, HELD), GemvLaunch(16, 256, 4, HELD)]
PRODUCTS = ["qkv", "attention_out", "gate_up", "down"]


@needs_triton
@pytest.mark.parametrize(
    "launch",
    [pytest.param(one, marks=marks_of(place, of=len(LAUNCHES))) for place, one in enumerate(LAUNCHES)],
    ids=str,
)
def test_every_code_is_its_number_in_its_place(launch: GemvLaunch, interpreted: Callable[..., None]) -> None:
    interpreted(check, launch, "cpu", torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("launch", LAUNCHES, ids=str)
def test_gpu_every_code_is_its_number_in_its_place(launch: GemvLaunch) -> None:
    check(launch, "cuda", torch.bfloat16)


def check_fp8(launch: GemvLaunch, device: str) -> None:
    """Every code but the two that are no numbers, in every column of some row, each by itself."""
    from inference_pio.kernels.triton.gemv import gemv

    columns, numbers = 320, torch.tensor([code for code in range(256) if code & 0x7F != 0x7F], dtype=torch.uint8)
    codes = numbers[(torch.arange(17)[:, None] * 37 + torch.arange(columns)[None] * 3) % len(numbers)].to(device)
    scale = 2.0 ** (torch.arange(17) % 5 - 2).to(device)
    wanted = codes.view(torch.float8_e4m3fn).float() * scale[:, None]
    for units in torch.arange(columns, device=device).split(8):
        x = torch.zeros(8, columns, dtype=torch.bfloat16, device=device)
        x[torch.arange(8), units] = 1.0
        out = torch.empty(8, 17, device=device)
        with torch.no_grad():
            gemv(x, [codes], scales=[scale], out=out, launch=launch)
        assert torch.equal(out.T, wanted[:, units])


@needs_triton
@pytest.mark.parametrize("launch", BYTES, ids=str)
def test_so_is_every_code_of_fp8(launch: GemvLaunch, interpreted: Callable[..., None]) -> None:
    interpreted(check_fp8, launch, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("launch", BYTES, ids=str)
def test_gpu_so_is_every_code_of_fp8(launch: GemvLaunch) -> None:
    check_fp8(launch, "cuda")


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", PRODUCTS)
def test_codes_go_from_memory_to_the_units(name: str, parts: int, capability: int, compiler: Compiler) -> None:
    if (name, parts, capability) == ("down", 2, 80):
        parts = 1  # as by rule: in parts it would spill
    case, warps = replace(REAL[name], group=128), 2 if name == "gate_up" else 4
    launch = GemvLaunch(16 // parts, 128 * warps, warps, HELD, parts=parts)
    code = compiled(compiler, capability, case, launch)
    code.assert_it_fits(MACHINES[capability])
    weights = 2 if case.gated else 1
    assert code.counts["HMMA"] == 2 * 8 * weights, code  # two steps of a group of 16 rows
    assert code.counts["LDG 128"] >= 4 * 2 * weights, code  # the two that come first, and those of the loop
    assert code.counts["LDSM"] == code.counts["LDGSTS 128"] == 0, code
    assert code.counts["BAR"] <= 14, code  # a step has one, for x; the others stand around the loop


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("batch", [1, 8])
def test_so_does_a_head_in_fp8(batch: int, capability: int, compiler: Compiler) -> None:
    case = replace(REAL["head"], batch=batch, fp8=True)
    code = compiled(compiler, capability, case, GemvLaunch(16, 256, 4, HELD))
    code.assert_it_fits(MACHINES[capability])
    assert code.counts["HMMA"] == 2 * 4, code
    assert code.counts["LDG 128"] >= 4 * 2, code
    assert code.counts["LDSM"] == code.counts["LDG U8"] == 0, code
    assert code.counts["I2F"] <= 1, code  # which divides sizes


def test_by_rule_they_wait_in_registers_where_rows_of_x_are_few() -> None:
    for name in PRODUCTS:
        case = REAL[name]
        sizes = sum(case.outputs), case.inputs
        found = [
            choose_gemv_launch(MACHINES[90], batch, *sizes, 0.5, gated=case.gated, group=128) for batch in (1, 2, 3)
        ]
        assert [codes_held(launch, torch.int32, 128, case.inputs) for launch in found] == [8, 8, 0]
    head = choose_gemv_launch(MACHINES[90], 1, 151936, 2560, 1, fp8=True, dependent=True)
    assert codes_held(head, torch.uint8, 0, 2560) == 4
    assert head.dependent
    assert choose_gemv_launch(MACHINES[90], 1, 151936, 2560, 1).stages == 0  # int8
    assert choose_gemv_launch(MACHINES[90], 1, 2560, 4096, 1, fp8=True).stages == 0
    assert choose_gemv_launch(MACHINES[90], 1, 151936, 2600, 1, fp8=True).stages == 0


def parts_that_do_not_divide_are_refused() -> None:
    for batch, inputs in ((1, 640), (4, 512)):
        with pytest.raises(InvalidSetting, match=f"is not for {batch} rows of x and {inputs} inputs in groups of 128"):
            check_case(Case(batch, inputs, (5,), group=128, launch=FOUR_PARTS))
    with pytest.raises(InvalidSetting, match="weights that are not in groups"):
        check_case(Case(1, 512, (5,), launch=FOUR_PARTS))


@needs_triton
def test_parts_that_do_not_divide_are_refused(interpreted: Callable[..., None]) -> None:
    interpreted(parts_that_do_not_divide_are_refused)
