"""The kernel for a few rows against the plain truth: interpreted at odd sizes, compiled at real ones, and on a GPU."""

from __future__ import annotations

import ctypes
import functools
import itertools
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.fp8 import quantize_rows_fp8
from inference_pio.kernels.gemv import naive_gemv
from inference_pio.kernels.int4 import quantize_groups, words_of
from inference_pio.kernels.int8 import quantize_rows
from inference_pio.kernels.triton.gemv_choice import choose_gemv_launch
from inference_pio.kernels.triton.gemv_launch import GemvLaunch, weight_bytes
from tests.kernels.triton.compiling import MACHINES, Code, Compiler
from tests.sweep import in_its_turn

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


WORDS, GROUPS = GemvLaunch(2, 1024, 1), GemvLaunch(16, 256, 2, stages=3)
HELD, BYTES = GemvLaunch(16, 512, 4, stages=2), GemvLaunch(16, 128, 2, stages=2)
TWO, FOUR = GemvLaunch(8, 512, 4, stages=2, parts=2), GemvLaunch(4, 256, 2, stages=2, parts=4)
EIGHT = GemvLaunch(2, 128, 1, stages=2, parts=8)
NARROW, WIDE, UNITS = GemvLaunch(2, 32, 1), GemvLaunch(2, 512, 1), GemvLaunch(16, 64, 1, stages=2)


@dataclass(frozen=True)
class Case:
    """Sizes, what stands around the product, and how it is launched; `merged`: gate and up are one tensor."""

    batch: int = 1
    inputs: int = 77
    outputs: tuple[int, ...] = (5,)
    launch: GemvLaunch | None = NARROW
    int8: bool = False
    fp8: bool = False
    group: int = 0
    biased: tuple[bool, ...] | None = None
    normed: bool = False
    gated: bool = False
    merged: bool = False
    added: bool = False
    aliased: bool = False
    strided: bool = False
    dtype: torch.dtype = torch.bfloat16
    out_dtype: torch.dtype | None = None

    @property
    def columns(self) -> int:
        return self.outputs[0] if self.gated else sum(self.outputs)


def problem(case: Case, device: str = "cpu") -> tuple[torch.Tensor, list[torch.Tensor], dict[str, Any]]:
    chance = torch.Generator().manual_seed(case.inputs)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=chance).to(device, case.dtype)

    x = numbers(case.batch, case.inputs + 16)[:, : case.inputs]  # rows that do not lie behind one another
    weights = [numbers(rows, case.inputs) / case.inputs**0.5 for rows in case.outputs]
    if case.merged:
        weights = [torch.cat(weights)]
    given: dict[str, Any] = {"gated": case.gated}
    if case.int8 or case.fp8 or case.group:
        by_rows = quantize_rows_fp8 if case.fp8 else quantize_rows
        quantize = functools.partial(words, case.group) if case.group else by_rows
        weights, given["scales"] = map(list, zip(*map(quantize, weights), strict=True))
    if case.biased is not None:
        each = zip(weights, case.biased, strict=True)
        given["biases"] = [numbers(weight.shape[0]) if biased else None for weight, biased in each]
    if case.normed:
        given |= {"norm_weight": numbers(case.inputs), "eps": 0.1}
    if case.added:
        given["residual"] = numbers(case.batch, case.columns)
    return x, weights, given


def words(group: int, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes, grids = quantize_groups(weight, group)
    return words_of(codes), grids


def check(case: Case, device: str = "cpu") -> None:
    from inference_pio.kernels.triton.gemv import gemv

    x, weights, given = problem(case, device)
    wanted = naive_gemv(x, weights, rounded=False, **given)
    # The interpreter's rounding to bfloat16 is not a GPU's, so there none is asked for.
    rounds = device != "cpu" or case.dtype == torch.float16
    dtype = case.out_dtype or (case.dtype if rounds else torch.float32)
    room = torch.full((case.batch, case.columns + 6), 777.0, device=device, dtype=dtype)
    made = case.out_dtype is None and rounds
    out = room[:, 3:-3] if case.strided else None if made else torch.empty(wanted.shape, device=device, dtype=dtype)
    if case.aliased:
        given["residual"] = out = given["residual"].to(dtype)
    got = gemv(x, weights, out=out, launch=case.launch, **given)
    assert out is None or got is out
    assert got.dtype == dtype
    # Matrix units take x times the norm's weight in bfloat16: four deviations of such sums are 0.014.
    exact = dtype == torch.float32 and (device == "cpu" or case.dtype == torch.float32)
    near, whole = (5e-5 if case.group else 1e-5, 5e-5) if exact else (1e-2, 5e-3)
    torch.testing.assert_close(got.float(), wanted, rtol=near, atol=near if device == "cpu" else 2 * near)
    assert float((got.float() - wanted).norm()) <= whole * float(wanted.norm())
    if case.strided:
        assert bool((room[:, :3] == 777).all() and (room[:, -3:] == 777).all())


EVERYTHING = Case(biased=(True, True), normed=True, gated=True, outputs=(7, 7), added=True, strided=True)
CASES = [
    Case(),
    Case(inputs=64, outputs=(8,)),
    Case(inputs=1, outputs=(1,)),
    Case(inputs=33, outputs=(1, 1), launch=GemvLaunch(4, 64, 2)),
    *(Case(batch, outputs=(5, 1, 6), normed=True, dtype=dtype) for batch in (1, 2, 3, 5, 8)
      for dtype in (torch.bfloat16, torch.float32)),
    Case(3, outputs=(5, 1, 6), dtype=torch.float16, normed=True, added=True),
    Case(2, outputs=(4, 3), biased=(True, False)),
    Case(2, outputs=(4, 3, 2), biased=(False, True, True), launch=GemvLaunch(1, 32, 1)),
    Case(2, outputs=(4, 3, 2), biased=(True, True, False), launch=GemvLaunch(1, 32, 1)),
    Case(2, outputs=(4, 3, 2), biased=(True, False, True)),
    Case(outputs=(4, 2), biased=(False, False)),
    Case(2, outputs=(9,), added=True, aliased=True, dtype=torch.float32),
    Case(3, outputs=(9, 2), added=True, aliased=True, normed=True, dtype=torch.float16),
    Case(3, outputs=(9, 2), strided=True),
    *(replace(EVERYTHING, batch=batch) for batch in (1, 2, 3, 5, 8)),
    replace(EVERYTHING, dtype=torch.float16, out_dtype=torch.float32),
    replace(EVERYTHING, batch=3, merged=True, biased=(True,)),
    replace(EVERYTHING, batch=3, biased=(False, True)),
    replace(EVERYTHING, batch=3, biased=(True, False)),
    replace(EVERYTHING, batch=2, int8=True, merged=True, biased=None, inputs=1100, launch=WIDE),
    *(Case(batch, 1100, (5, 1, 6), int8=True, launch=WIDE, normed=True, added=True) for batch in (1, 2, 3, 5, 8)),
    Case(2, 1024, (5, 3), int8=True, launch=WIDE, biased=(True, False)),
    Case(2, 300, (5, 3), int8=True, launch=GemvLaunch(2, 256, 1)),
    Case(2, 300, (5, 3), int8=True, launch=WIDE, dtype=torch.float32),
    *(Case(batch, 1100, (5, 1, 6), fp8=True, launch=WIDE, normed=True, added=True) for batch in (1, 3, 8)),
    replace(EVERYTHING, batch=2, fp8=True, merged=True, biased=None, inputs=1100, launch=WIDE),
    replace(EVERYTHING, batch=5, fp8=True, outputs=(17, 17), launch=UNITS),
    Case(2, 300, (5, 3), fp8=True, launch=WIDE, dtype=torch.float16),
    *(Case(batch, outputs=(5, 1, 18), normed=True, launch=UNITS) for batch in (1, 2, 3, 5, 8)),
    Case(8, 256, (16, 33), normed=True, launch=UNITS, added=True, strided=True),
    replace(EVERYTHING, batch=5, outputs=(17, 17), launch=UNITS),
    replace(EVERYTHING, batch=8, outputs=(17, 17), launch=UNITS, int8=True, merged=True, biased=(True,)),
    Case(8, outputs=(9, 18), int8=True, launch=UNITS, biased=(True, False), normed=True),
    Case(3, outputs=(5, 3), normed=True, launch=replace(NARROW, dependent=True)),
    Case(3, outputs=(5, 18), normed=True, launch=replace(UNITS, dependent=True)),
    replace(EVERYTHING, batch=8, outputs=(17, 17), launch=replace(UNITS, dependent=True)),
    *(Case(batch, 320, (5, 1, 6), group=32, launch=WORDS, normed=True, added=True) for batch in (1, 2, 3, 5, 8)),
    Case(1, 384, (7,), group=128, launch=GemvLaunch(2, 256, 1), biased=(True,)),
    Case(2, 256, (4, 3), group=64, launch=GemvLaunch(4, 512, 1), biased=(False, True), dtype=torch.float32),
    Case(1, 96, (5,), group=32, launch=GemvLaunch(1, 64, 2)),
    *(Case(batch, 384, (5, 1, 18), group=128, launch=GROUPS, normed=True, added=True) for batch in (1, 2, 3, 5, 8)),
    replace(EVERYTHING, batch=3, inputs=384, outputs=(17, 17), group=128, launch=replace(GROUPS, dependent=True)),
    replace(EVERYTHING, batch=1, inputs=256, group=128, launch=GROUPS, merged=True, biased=(True,)),
    Case(1, 2048, (6,), group=128, launch=None),
    *(Case(batch, 2560, (5, 1, 7), group=128, launch=FOUR, normed=True, added=True) for batch in (1, 2)),
    *(Case(batch, 768, (9, 3, 19), group=128, launch=TWO, normed=True, added=True) for batch in (1, 3, 4)),
    Case(1, 3072, (3,), group=128, launch=EIGHT, aliased=True, added=True),
    *(Case(batch, 640, (5, 1, 18), group=128, launch=HELD, normed=True, added=True) for batch in (1, 2, 3, 5, 8)),
    replace(EVERYTHING, batch=3, inputs=384, outputs=(17, 17), group=128, launch=replace(HELD, dependent=True)),
    *(Case(batch, 448, (5, 1, 18), fp8=True, launch=BYTES, normed=True, added=True) for batch in (1, 2, 3, 5, 8)),
    replace(EVERYTHING, batch=2, inputs=320, outputs=(17, 17), fp8=True, launch=replace(BYTES, dependent=True)),
    Case(1, 300, (5, 3), fp8=True, launch=BYTES),
    replace(EVERYTHING, inputs=1024, outputs=(3, 3), group=128, launch=EIGHT),
    replace(EVERYTHING, batch=2, inputs=1536, group=128, launch=replace(FOUR, dependent=True)),
    replace(EVERYTHING, batch=4, inputs=768, group=128, launch=TWO, merged=True, biased=(True,)),
    Case(1, 9728, (4,), group=128, launch=None, added=True),
    replace(EVERYTHING, batch=2, inputs=320, group=64, launch=WORDS),
    replace(EVERYTHING, inputs=320, group=32, launch=replace(WORDS, dependent=True), merged=True, biased=(True,)),
    Case(2, 300, (37,), launch=None),
    Case(8, 300, (16, 16), launch=None, gated=True),
]  # fmt: skip


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_exact_in_the_interpreter(case: Case, interpreted: Callable[..., None]) -> None:
    interpreted(check, case)


def nothing_but_its_own_rows_is_read() -> None:
    """What lies behind the last row, beside the last input, and in other segments is never multiplied."""
    from inference_pio.kernels.triton.gemv import gemv

    room = torch.full((9, 80), float("nan"))
    first, second, x = room[:3, :70], room[4:6, :70], room[7:9, :70]
    for tensor in (first, second, x):
        tensor.copy_(torch.randn(tensor.shape))
    got = gemv(x, [first, second], launch=GemvLaunch(4, 32, 1))
    torch.testing.assert_close(got, naive_gemv(x, [first, second]), rtol=1e-5, atol=1e-5)


@needs_triton
def test_nothing_but_its_own_rows_is_read(interpreted: Callable[..., None]) -> None:
    interpreted(nothing_but_its_own_rows_is_read)


def at_the_end_of_memory(tensor: torch.Tensor) -> torch.Tensor:
    """A copy behind which lies a page that nobody may read."""
    tensor = tensor.contiguous()
    page = mmap.PAGESIZE
    held = -(-tensor.nbytes // page) * page
    room = mmap.mmap(-1, held + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(room))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + held), page, 0) == 0
    offset = held - tensor.nbytes
    raw = torch.frombuffer(room, dtype=torch.uint8, offset=offset, count=tensor.nbytes)
    return raw.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def nothing_is_read_behind_the_tensors() -> None:
    from inference_pio.kernels.triton.gemv import gemv

    codes = Case(3, outputs=(5, 1, 3), int8=True, biased=(True, False, True), normed=True, added=True)
    words = replace(EVERYTHING, inputs=3072, group=128)
    served = [
        *itertools.product((EVERYTHING, codes), (NARROW, WIDE, UNITS)),
        (words, GROUPS),
        (words, HELD),
        (words, FOUR),
    ]
    for case, launch in served:
        x, weights, given = problem(case)
        for name, value in given.items():
            if isinstance(value, torch.Tensor):
                given[name] = at_the_end_of_memory(value)
            elif isinstance(value, list):
                given[name] = [one if one is None else at_the_end_of_memory(one) for one in value]
        wanted = naive_gemv(x, weights, rounded=False, **given)
        out = at_the_end_of_memory(torch.zeros(wanted.shape))
        gemv(at_the_end_of_memory(x), [*map(at_the_end_of_memory, weights)], out=out, launch=launch, **given)
        near = 5e-5 if case.group else 1e-5
        torch.testing.assert_close(out, wanted, rtol=near, atol=near)


@in_its_turn(1, of=3)
@needs_triton
def test_nothing_is_read_behind_the_tensors(interpreted: Callable[..., None]) -> None:
    code = f"from {__name__} import *; nothing_is_read_behind_the_tensors()"  # where it is, the process ends
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def what_is_not_served_is_told() -> None:
    from inference_pio.kernels.triton.gemv import gemv

    x, weight = torch.zeros(2, 64), torch.zeros(3, 64)
    with pytest.raises(InvalidSetting, match="1 to 8 rows, and x has 9"):
        gemv(torch.zeros(9, 64), [weight])
    with pytest.raises(InvalidSetting, match="side by side"):
        gemv(x, [torch.zeros(64, 3).mT])
    with pytest.raises(InvalidSetting, match="is no launch"):
        gemv(x, [weight], launch=GemvLaunch(3, 64, 1))
    with pytest.raises(InvalidSetting, match=r"is for bfloat16, and x is torch\.float32"):
        gemv(x, [weight], launch=UNITS)
    with pytest.raises(InvalidSetting, match="does not take x of 64 inputs"):
        gemv(x, [torch.zeros(3, 65)])


@needs_triton
def test_what_is_not_served_is_told(interpreted: Callable[..., None]) -> None:
    interpreted(what_is_not_served_is_told)


REAL = {
    "qkv": Case(inputs=2560, outputs=(4096, 1024, 1024), normed=True),
    "attention_out": Case(inputs=4096, outputs=(2560,), added=True, aliased=True),
    "gate_up": Case(inputs=2560, outputs=(9728, 9728), normed=True, gated=True),
    "down": Case(inputs=9728, outputs=(2560,), added=True, aliased=True),
    "head": Case(inputs=2560, outputs=(151936,), normed=True, out_dtype=torch.float32),
}


def compiled(
    compiler: Compiler, capability: int, case: Case, launch: GemvLaunch | None = None, dependent: bool = False
) -> Code:
    """The machine code of a real case; nothing is computed, so that its tensors are never written."""
    from inference_pio.kernels.triton.gemv import gemv, gemv_kernel

    compiler.for_machine(capability, gemv_kernel)
    dtype = torch.int8 if case.int8 else torch.uint8 if case.fp8 else torch.int32 if case.group else case.dtype
    weights = [torch.empty(rows, case.inputs // (8 if case.group else 1), dtype=dtype) for rows in case.outputs]
    rows = sum(case.outputs)
    held_bytes = weight_bytes(weights[0], case.group)
    launch = launch or choose_gemv_launch(
        MACHINES[capability], case.batch, rows, case.inputs, held_bytes, gated=case.gated, group=case.group,
        dependent=dependent,
    )  # fmt: skip
    scales = None
    if case.int8 or case.fp8 or case.group:
        shapes = [(case.inputs // case.group, rows, 2) if case.group else (rows,) for rows in case.outputs]
        scales = [torch.empty(shape, dtype=torch.bfloat16) for shape in shapes]
    gemv(
        torch.empty(case.batch, case.inputs, dtype=case.dtype), weights, gated=case.gated, launch=launch,
        scales=scales,
        norm_weight=torch.empty(case.inputs, dtype=case.dtype) if case.normed else None, eps=1e-6,
        residual=torch.empty(case.batch, case.columns, dtype=case.dtype) if case.added else None,
        out=torch.empty(case.batch, case.columns, dtype=case.out_dtype or case.dtype),
    )  # fmt: skip
    [code] = compiler.found
    together = 65536 // (-(-code.registers // 8) * 8 * code.threads)
    together = min(together, 32, MACHINES[capability].shared_bytes // (code.shared_bytes + 1024))
    used = f"{code.registers} registers, {code.shared_bytes} shared bytes, {code.threads} threads"
    print(f"{launch}: {used}, {together} programs at a time")
    return code


def _compile(compiler: Compiler, capability: int, case: Case) -> None:
    code = compiled(compiler, capability, case)
    code.assert_it_fits(MACHINES[capability])
    weight_bytes = 1 if case.int8 or case.fp8 else 2
    launch = choose_gemv_launch(
        MACHINES[capability], case.batch, sum(case.outputs), case.inputs, weight_bytes, gated=case.gated
    )
    assert not code.counts["LDG U8"], code
    if launch.stages:
        copied = launch.rows * launch.columns * weight_bytes // (512 * launch.warps) * (2 if case.gated else 1)
        assert code.counts["LDGSTS 128"] >= launch.stages * copied
        assert code.counts["HMMA"], code
        assert not code.counts["LDGSTS"], code
        return
    held_bytes = launch.columns * weight_bytes // (32 * launch.warps)
    tiles = 4 if case.gated else 2  # in use, and the next
    assert code.counts["LDG 128" if held_bytes >= 16 else "LDG 64"] >= tiles * launch.rows * max(1, held_bytes // 16)
    assert not code.counts["LDG 64"] or held_bytes == 8, "measured so"
    assert case.int8 or case.fp8 or case.added or not code.counts["LDG U16"], code  # scales and residuals are few


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("int8", [False, True], ids=["bfloat16", "int8"])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", REAL)
def test_real_shapes_compile_to_wide_loads_without_spilling(
    name: str, batch: int, int8: bool, capability: int, compiler: Compiler
) -> None:
    _compile(compiler, capability, replace(REAL[name], batch=batch, int8=int8))


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("batch", [1, 8])
def test_so_do_they_with_fp8(batch: int, capability: int, compiler: Compiler) -> None:
    _compile(compiler, capability, replace(REAL["gate_up"], batch=batch, fp8=True))


@needs_triton
@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("name", ["qkv", "gate_up", "down"])
def test_codes_in_groups_cost_few_instructions(name: str, batch: int, compiler: Compiler) -> None:
    """By threads, which take groups of 32 and 64."""
    case = replace(REAL[name], batch=batch, group=64)
    code = compiled(compiler, 90, case)
    code.assert_it_fits(MACHINES[90])
    launch = choose_gemv_launch(MACHINES[90], batch, sum(case.outputs), case.inputs, 0.5, gated=case.gated, group=64)
    together = 2 if case.gated else 1
    held = launch.rows * together * launch.columns // (32 * launch.warps)  # codes of a thread in one step
    assert code.counts["LDG 128" if held // launch.rows // together >= 32 else "LDG 64"] >= 2 * launch.rows * together
    assert not code.counts["LDG U8"], code
    assert held * batch <= code.counts["FFMA"] <= held * batch * 2 + 100, code
    assert code.counts["I2F"] <= 1, code  # the number of inputs


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("int8", [False, True], ids=["bfloat16", "int8"])
@pytest.mark.parametrize("batch", [2, 3, 4, 5])
@pytest.mark.parametrize("name", REAL)
def test_so_do_they_with_other_rows(name: str, batch: int, int8: bool, capability: int, compiler: Compiler) -> None:
    _compile(compiler, capability, replace(REAL[name], batch=batch, int8=int8))


@needs_triton
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", REAL)
def test_a_dependent_kernel_waits_after_its_first_weights_and_before_all_else(
    name: str, batch: int, compiler: Compiler
) -> None:
    case = replace(REAL[name], batch=batch)
    code = compiled(compiler, 90, case, dependent=True)
    code.assert_it_fits(MACHINES[90])
    launch = choose_gemv_launch(MACHINES[90], batch, sum(case.outputs), case.inputs, 2, gated=case.gated)
    if launch.stages:  # waiting programs would take the memory of those that work
        assert "ACQBULK" not in code.order
        return
    wait = code.order.index("ACQBULK")
    before, after = code.order[:wait], code.order[wait:]
    assert "PREEXIT" in before
    tile_loads = launch.rows * max(1, launch.columns // (256 * launch.warps)) * (2 if case.gated else 1)
    assert sum(kind.startswith("LDG") for kind in before) == tile_loads
    assert not any(kind.startswith("STG") for kind in before)
    assert any(kind.startswith("STG") for kind in after)


@needs_triton
def test_otherwise_no_kernel_waits_for_another(compiler: Compiler) -> None:
    code = compiled(compiler, 80, REAL["down"], dependent=True)  # a wish, which this GPU cannot fulfil
    assert "ACQBULK" not in code.order


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gpu_it_is_exact_up_to_rounding(case: Case) -> None:
    if case.launch and case.launch.dependent and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("kernels do not overlap before compute capability 9.0")
    check(case, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("int8", [False, True], ids=["bfloat16", "int8"])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("name", REAL)
def test_gpu_real_shapes_are_exact_up_to_rounding(name: str, batch: int, int8: bool) -> None:
    check(replace(REAL[name], batch=batch, int8=int8, launch=None), "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 2, 5, 8])
@pytest.mark.parametrize("name", REAL)
def test_gpu_real_shapes_in_fp8_are_exact_up_to_rounding(name: str, batch: int) -> None:
    check(replace(REAL[name], batch=batch, fp8=True, launch=None), "cuda")


@pytest.mark.gpu
def test_gpu_dependent_kernels_in_a_graph_see_what_the_ones_before_wrote() -> None:
    from inference_pio.kernels.triton.gemv import gemv

    device = torch.device("cuda")
    launch = GemvLaunch(1, 512, 1, dependent=torch.cuda.get_device_capability() >= (9, 0))
    weights = [torch.randn(2560, 2560, device=device, dtype=torch.bfloat16) / 50 for _ in range(12)]
    first = torch.randn(1, 2560, device=device, dtype=torch.bfloat16)
    states = [torch.empty_like(first) for _ in range(2)]

    def walk(launch: GemvLaunch) -> None:
        states[0].copy_(first)
        for index, weight in enumerate(weights):
            gemv(states[index % 2], [weight], out=states[1 - index % 2], launch=launch)

    walk(replace(launch, dependent=False))
    wanted = states[0].clone()
    walk(launch)  # compiles, which no graph may do
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        walk(launch)
    for _ in range(20):
        for state in states:
            state.fill_(float("nan"))
        graph.replay()
        assert torch.equal(states[0], wanted)
