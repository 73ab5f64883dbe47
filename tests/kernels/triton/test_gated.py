"""The kernel of an MLP's gate against the plain truth: interpreted, compiled, and on a GPU bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels import gated as plain
from tests.kernels.test_rms_norm import DTYPES, drawn
from tests.kernels.triton.compiling import MACHINES, Compiler
from tests.kernels.ulps import ulps_apart

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
SHAPES = [(1, 1, 96), (2, 5, 13), (3, 1), (0, 8), (2, 2050)]


def check(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> None:
    """The interpreter's exponential is another than torch's on the CPU; on a GPU they are the same."""
    from inference_pio.kernels.triton.gated import silu_mul

    gate, up = (drawn(*shape, dtype=dtype, seed=seed).to(device) for seed in range(2))
    limit = {"cuda": 0, "cpu": 4 if dtype == torch.float32 else 0}[device]
    assert ulps_apart(silu_mul(gate, up), plain.silu_mul(gate, up)) <= limit
    assert ulps_apart(silu_mul(torch.cat([gate, up], -1)), plain.silu_mul(gate, up)) <= limit
    assert silu_mul(gate.clone().fill_(-1e4), up).abs().sum() == 0


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
def test_it_rounds_as_the_library_does_in_the_interpreter(
    shape: tuple[int, ...], dtype: torch.dtype, interpreted: Callable[..., None]
) -> None:
    interpreted(check, shape, dtype)


@needs_triton
def test_what_it_cannot_serve_is_refused() -> None:
    from inference_pio.kernels.triton import gated as room

    with pytest.raises(InvalidSetting, match="does not serve here"):
        room.silu_mul(torch.zeros(2, 8, dtype=torch.float64))


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("width", [768, 9728])
def test_it_compiles_to_wide_loads_without_spilling(capability: int, width: int, compiler: Compiler) -> None:
    from inference_pio.kernels.triton.gated import silu_mul, silu_mul_kernel

    compiler.for_machine(capability, silu_mul_kernel)
    silu_mul(torch.zeros(2, 2 * width, dtype=torch.bfloat16))
    (code,) = compiler.found
    code.assert_it_fits(MACHINES[capability])
    assert code.counts["LDG 128"] == 2, code
    assert code.counts["STG 128"] == 1, code
    assert not code.counts["LDG U16"] + code.counts["LDG"], code


@needs_triton
def test_a_prompt_of_any_length_is_one_launch(compiler: Compiler) -> None:
    from inference_pio.kernels.triton.gated import silu_mul, silu_mul_kernel

    compiler.for_machine(90, silu_mul_kernel)
    silu_mul(torch.zeros(70_000, 16, dtype=torch.bfloat16))
    assert compiler.found


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (4, 1024, 9728), (70_000, 8)])
def test_gpu_it_has_torchs_bits(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(shape, dtype, "cuda")
