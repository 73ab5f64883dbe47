"""Sums are scaled in one pass as by definition, in every dtype and at sizes that no block divides."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.dynamic_linear import naive_scaled_sums
from tests.kernels.triton.compiling import MACHINES, Compiler

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [(1, 16), (3, 1025), (17, 2560), (0, 8)]


def check(shape: tuple[int, int], dtype: torch.dtype, device: str = "cpu") -> None:
    from inference_pio.kernels.triton.scaled_sums import scaled_sums

    chance = torch.Generator().manual_seed(shape[1])
    sums = torch.randint(-(2**22), 2**22, shape, generator=chance, dtype=torch.int32).to(device)
    of_tokens = (torch.rand(shape[0], 1, generator=chance) * 1e-3).to(device)
    scale = (torch.rand(shape[1], generator=chance) * 1e-3).to(device)
    found = scaled_sums(sums, of_tokens, scale, dtype)
    wanted = naive_scaled_sums(sums, of_tokens, scale, dtype)
    assert found.dtype is dtype
    if device == "cpu":  # the interpreter rounds to bfloat16 in its own way
        torch.testing.assert_close(found, wanted, rtol=8e-3, atol=0)
    else:
        assert torch.equal(found, wanted)


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_scales_as_by_definition(
    shape: tuple[int, int], dtype: torch.dtype, interpreted: Callable[..., None]
) -> None:
    interpreted(check, shape, dtype)


@needs_triton
def test_what_it_cannot_serve_is_refused() -> None:
    from inference_pio.kernels.triton.scaled_sums import scaled_sums

    sums, of_tokens, scale = torch.zeros(4, 8, dtype=torch.int32), torch.ones(4, 1), torch.ones(8)
    with pytest.raises(InvalidSetting, match="float64"):
        scaled_sums(sums, of_tokens, scale, torch.float64)
    with pytest.raises(InvalidSetting, match="side by side"):
        scaled_sums(sums.t(), of_tokens, scale, torch.float32)
    with pytest.raises(InvalidSetting, match="needs an NVIDIA GPU"):
        scaled_sums(sums, of_tokens, scale, torch.float32)


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_it_compiles_to_wide_loads_without_spilling(capability: int, compiler: Compiler) -> None:
    from inference_pio.kernels.triton.scaled_sums import scaled_sums, scaled_sums_kernel

    compiler.for_machine(capability, scaled_sums_kernel)
    scaled_sums(torch.zeros(3, 2560, dtype=torch.int32), torch.ones(3, 1), torch.ones(2560), torch.bfloat16)
    (code,) = compiler.found
    code.assert_it_fits(MACHINES[capability])
    assert code.counts["LDG 128"] > 0, code


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (8192, 19456)])
def test_gpu_it_scales_as_by_definition(shape: tuple[int, int], dtype: torch.dtype) -> None:
    check(shape, dtype, "cuda")
