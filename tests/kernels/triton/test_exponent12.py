"""Weights in 12 bits, made again: interpreted at odd sizes, compiled at real ones, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.exponent12 import Packed, naive_weights, pack, unpack
from tests.kernels.test_exponent12 import every_pattern, same_bits, trained
from tests.kernels.triton.compiling import MACHINES, Compiler

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


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
        one = Packed(*(part[number] for part in packed[:5]), packed.places, packed.values)
        out = torch.zeros(33, 48, dtype=torch.bfloat16, device=device)
        assert same_bits(exponent12_unpack(one, out).cpu(), stack[number])


@needs_triton
def test_weights_come_back_to_the_bit_in_the_interpreter(interpreted: Callable[..., None]) -> None:
    interpreted(check_unpacked)


def check_refusals() -> None:
    from inference_pio.kernels.triton.exponent12 import exponent12_unpack

    packed = pack(trained(20, 32))
    with pytest.raises(InvalidSetting, match="do not go into"):
        exponent12_unpack(packed, torch.empty(20, 16, dtype=torch.bfloat16))
    with pytest.raises(InvalidSetting, match="do not lie side by side"):
        exponent12_unpack(packed._replace(codes=packed.codes.t().contiguous().t()))


@needs_triton
def test_what_it_cannot_serve_is_refused_with_the_reason(interpreted: Callable[..., None]) -> None:
    interpreted(check_refusals)


@needs_triton
def test_without_a_gpu_it_says_so() -> None:
    from inference_pio.kernels.triton.exponent12 import exponent12_unpack

    with pytest.raises(InvalidSetting, match="it needs an NVIDIA GPU"):
        exponent12_unpack(pack(trained(16, 32)))


# ---------------------------------------------------------------- machine code


def of_zeros(rows: int, inputs: int) -> Packed:
    made = pack(torch.empty(rows, inputs, dtype=torch.bfloat16, device="meta"))
    return Packed(*(torch.zeros(part.shape, dtype=part.dtype) for part in made))


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
def test_gpu_weights_come_back_to_the_bit() -> None:
    check_unpacked("cuda")
    weights = trained(48, 160)
    assert same_bits(unpack(pack(weights.cuda())).cpu(), weights)  # by our kernel, there
