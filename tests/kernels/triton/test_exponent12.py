"""Kernels for weights in 12 bits: interpreted at odd sizes, compiled at real ones, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.exponent12 import Packed, naive_weights, pack
from inference_pio.kernels.triton.gemv_launch import GemvLaunch
from tests.kernels.test_exponent12 import every_pattern, same_bits, trained
from tests.kernels.triton.compiling import MACHINES, Code, Compiler

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")

THREADS, WIDE, UNITS = GemvLaunch(2, 64, 1), GemvLaunch(1, 512, 1), GemvLaunch(16, 64, 1, stages=2)


@dataclass(frozen=True)
class Case:
    """`batch` rows of x, weights [rows, inputs], and how they are launched."""

    batch: int = 1
    rows: int = 5
    inputs: int = 48
    launch: GemvLaunch | None = THREADS
    biased: bool = False
    dtype: torch.dtype = torch.bfloat16
    strided: bool = False


CASES = [
    Case(), Case(rows=1, inputs=16), Case(rows=33, inputs=96, biased=True), Case(rows=48, inputs=128, launch=WIDE),
    Case(batch=2, rows=17, inputs=160), Case(batch=3, rows=20, inputs=64, dtype=torch.float16, biased=True),
    Case(batch=5, rows=16, inputs=80, dtype=torch.float32),
    Case(batch=2, rows=18, inputs=64, strided=True, biased=True),
    Case(rows=35, inputs=64, launch=GemvLaunch(16, 64, 1)), Case(batch=7, rows=9, inputs=48, launch=UNITS),
    Case(rows=33, inputs=96, launch=UNITS, biased=True), Case(batch=16, rows=40, inputs=128, launch=UNITS),
    Case(batch=16, rows=17, inputs=80, launch=UNITS, strided=True, biased=True),
    Case(batch=9, rows=37, inputs=96, launch=None),
    Case(rows=37, inputs=96, launch=None),
]  # fmt: skip


def problem(case: Case, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """x, weights and a bias; among the weights are listed ones in the first and the last row, and x has their places
    large, so that they matter."""
    chance = torch.Generator().manual_seed(case.inputs)
    x = torch.randn(case.batch, case.inputs + 16, generator=chance)[:, : case.inputs]
    weights = trained(case.rows, case.inputs, seed=case.rows)
    weights[0, 1], weights[-1, case.inputs - 1] = 2.0**-30, 0.0
    bias = torch.randn(case.rows, generator=chance).to(device, case.dtype) if case.biased else None
    return x.to(device, case.dtype), weights.to(device), bias


def check(case: Case, device: str = "cpu") -> None:
    from inference_pio.kernels.triton.exponent12 import exponent12_gemv

    x, weights, bias = problem(case, device)
    packed = pack(weights)
    assert packed.places.numel() >= 2
    wanted = torch.nn.functional.linear(x.double(), weights.double(), None if bias is None else bias.double()).float()
    room = torch.full((case.batch, case.rows + 6), 777.0, device=device)  # rounding to bfloat16 is not a GPU's here
    out = room[:, 3:-3] if case.strided else torch.empty(case.batch, case.rows, device=device)
    assert exponent12_gemv(x, packed, bias, out=out, launch=case.launch) is out
    if device != "cpu" and case.batch > 1 and case.dtype is torch.bfloat16 and case.launch is None:
        # matrix units cut off what does not fit beside the largest of 16 products: 2**-18 of their sizes on an H100
        sizes = torch.nn.functional.linear(x.double().abs(), weights.double().abs())
        assert ((out - wanted).abs() <= 2.0**-16 * sizes).all()
        return
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=2e-6)
    if case.strided:
        assert bool((room[:, :3] == 777).all() and (room[:, -3:] == 777).all())


def check_listed(device: str = "cpu") -> None:
    """Rows of which nothing but what is listed meets an x that is not zero; runs of rows with many, and with none."""
    from inference_pio.kernels.triton.exponent12 import exponent12_gemv

    weights = torch.ones(70, 128).bfloat16()
    weights[3, ::2] = 2.0**-20  # 64 in one run: more than a program reads at a time
    weights[40:, 5] = torch.arange(1, 31).bfloat16() * 2.0**-30
    weights[69, 6] = -0.0
    x = torch.zeros(2, 128)
    x[0, 4], x[1, 5], x[1, 6] = 2.0**20, 2.0**30, 3.0
    x[0, 126] = x[0, 4] * 8
    packed, wanted = pack(weights.to(device)), torch.nn.functional.linear(x.double(), weights.double()).float()
    for launch in (THREADS, GemvLaunch(16, 64, 1), *([UNITS] if device == "cpu" else [])):
        found = exponent12_gemv(x.to(device, torch.bfloat16 if launch is UNITS else x.dtype), packed,
                                out=torch.empty(2, 70, device=device), launch=launch)  # fmt: skip
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-4, atol=0.0)


def check_unpacked(device: str = "cpu") -> None:
    from inference_pio.kernels.triton.exponent12 import exponent12_unpack

    shapes = [(1, 16), (16, 32), (17, 48), (33, 528), (48, 160)]
    for weights in (*(trained(*shape) for shape in shapes), every_pattern(256, 0)):
        there = pack(weights.to(device))
        assert same_bits(exponent12_unpack(there).cpu(), weights)
    assert same_bits(naive_weights(pack(trained(17, 48))), trained(17, 48))
    stack = trained(3, 33, 48)
    packed = pack(stack.to(device))
    for number in range(3):  # one of many, beside the lists of all
        one = Packed(*(part[number] for part in packed[:4]), packed.places, packed.values)
        out = torch.zeros(33, 48, dtype=torch.bfloat16, device=device)
        assert same_bits(exponent12_unpack(one, out).cpu(), stack[number])


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_multiplies_in_the_interpreter(case: Case, interpreted: Callable[..., None]) -> None:
    interpreted(check, case)


@needs_triton
def test_what_is_listed_counts_in_the_interpreter(interpreted: Callable[..., None]) -> None:
    interpreted(check_listed)


@needs_triton
def test_weights_come_back_to_the_bit_in_the_interpreter(interpreted: Callable[..., None]) -> None:
    interpreted(check_unpacked)


def check_refusals() -> None:
    from inference_pio.kernels.triton.exponent12 import exponent12_gemv, exponent12_unpack

    x, packed = torch.ones(1, 32), pack(trained(20, 32))
    wrong = [
        (x.repeat(17, 1), packed, {}, "1 to 16 rows"), (x[:, :16], packed, {}, "is not multiplied with"),
        (x.double(), packed, {}, "for bfloat16, float16 or float32"),
        (x, packed, {"bias": torch.ones(3)}, "a bias of 20"),
        (x, packed, {"out": torch.ones(20, 2).t()[:1]}, "do not lie side by side"),
        (x, packed._replace(codes=packed.codes[:, ::2].repeat(1, 2)[:, :32].t().contiguous().t()), {}, "side by side"),
        (x, packed, {"launch": GemvLaunch(32, 64, 1)}, "up to 16 rows"),
        (x, packed, {"launch": UNITS}, "launch it without `stages`"),
        (x.clone().requires_grad_(), packed, {}, "no backward"),
    ]  # fmt: skip
    for given, parts, named, said in wrong:
        with pytest.raises(InvalidSetting, match=said):
            exponent12_gemv(given, parts, **named)
    with pytest.raises(InvalidSetting, match="do not go into"):
        exponent12_unpack(packed, torch.empty(20, 16, dtype=torch.bfloat16))


@needs_triton
def test_what_it_cannot_serve_is_refused_with_the_reason(interpreted: Callable[..., None]) -> None:
    interpreted(check_refusals)


@needs_triton
def test_without_a_gpu_it_says_so() -> None:
    from inference_pio.kernels.triton.exponent12 import exponent12_gemv, exponent12_unpack

    packed = pack(trained(16, 32))
    with pytest.raises(InvalidSetting, match="it needs an NVIDIA GPU"):
        exponent12_gemv(torch.ones(1, 32), packed)
    with pytest.raises(InvalidSetting, match="it needs an NVIDIA GPU"):
        exponent12_unpack(packed)


# ---------------------------------------------------------------- machine code

SHAPES = [(6144, 2560), (2560, 9728), (19456, 2560)]


def of_zeros(rows: int, inputs: int) -> Packed:
    made = pack(torch.empty(rows, inputs, dtype=torch.bfloat16, device="meta"))
    return Packed(*(torch.zeros(part.shape, dtype=part.dtype) for part in made))


def compiled(compiler: Compiler, capability: int, batch: int, shape: tuple[int, int]) -> Code:
    from inference_pio.kernels.triton.exponent12 import exponent12_gemv, exponent12_gemv_kernel

    compiler.for_machine(capability, exponent12_gemv_kernel)
    exponent12_gemv(torch.zeros(batch, shape[1], dtype=torch.bfloat16), of_zeros(*shape))
    [code] = compiler.found
    return code


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_for_one_row_nothing_spills_or_moves_between_threads(
    capability: int, shape: tuple[int, int], compiler: Compiler
) -> None:
    code = compiled(compiler, capability, 1, shape)
    code.assert_it_fits(MACHINES[capability])
    assert code.shared_bytes == 0, code
    assert code.registers * code.threads <= 65536 // 20, code  # 20 programs of one warp at a time and more
    assert code.counts["LDG 128"] == 2 * 2 + 2, code  # codes of two rows, in use and next ones, and x twice
    assert code.counts["LDG 64"] == 2 * 2, code  # indices


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("batch", [2, 8, 16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_for_more_rows_matrix_units_multiply_without_spilling(
    capability: int, batch: int, shape: tuple[int, int], compiler: Compiler
) -> None:
    code = compiled(compiler, capability, batch, shape)
    code.assert_it_fits(MACHINES[capability])
    assert code.counts["HMMA"] >= 8, code
    assert code.counts["LDGSTS 128"] >= 8, code
    assert code.counts["LDGSTS 64"] >= 8, code


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_unpacking_reads_and_writes_sixteen_bytes_at_a_time(capability: int, compiler: Compiler) -> None:
    from inference_pio.kernels.triton import exponent12 as kernels

    compiler.for_machine(capability, kernels.exponent12_codes_kernel, kernels.exponent12_listed_kernel)
    kernels.exponent12_unpack(of_zeros(2560, 2560))
    codes, listed = compiler.found
    for code in (codes, listed):
        code.assert_it_fits(MACHINES[capability])
    assert codes.counts["LDG 128"] == 2, codes
    assert codes.counts["STG 128"] == 4, codes


@pytest.mark.gpu
@pytest.mark.parametrize("case", [case for case in CASES if case.launch is not UNITS], ids=str)
def test_gpu_it_multiplies(case: Case) -> None:
    check(case, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 2, 8, 16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gpu_real_shapes_are_multiplied(batch: int, shape: tuple[int, int]) -> None:
    check(Case(batch, *shape, launch=None), "cuda")


@pytest.mark.gpu
def test_gpu_what_is_listed_counts_and_weights_come_back() -> None:
    check_listed("cuda")
    check_unpacked("cuda")
