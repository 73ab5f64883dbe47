"""The kernel that codes tokens against the plain truth: interpreted, compiled, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.fp8 import FP8
from inference_pio.kernels.token_codes import naive_code_tokens
from tests.kernels.test_token_codes import KINDS, seeded
from tests.kernels.triton.compiling import MACHINES, Compiler

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [(1, 64), (3, 100), (5, 1), (2, 2050), (0, 8)]


def check(shape: tuple[int, int], dtype: torch.dtype, kind: torch.dtype, device: str = "cpu") -> None:
    from inference_pio.kernels.triton.token_codes import code_tokens

    wide = (seeded(shape[0], 2 * shape[1]) * torch.logspace(-3, 3, max(1, shape[0]))[: shape[0], None]).to(dtype)
    x = wide.to(device)[:, : shape[1]]
    codes, scale = code_tokens(x, kind)
    wanted, wanted_scale = naive_code_tokens(x, kind)
    assert torch.equal(scale, wanted_scale)
    codes, wanted = codes.view(torch.uint8), wanted.view(torch.uint8)
    if kind is not FP8 or device != "cpu":
        assert torch.equal(codes, wanted)
        return
    # the interpreter rounds halves up, and loses the carry of a mantissa that becomes a power of two
    told = (wanted & 7) != 0
    apart = (codes[told].int() - wanted[told].int()).abs()
    assert told.float().mean() > 0.75 or told.numel() < 64
    assert not apart.numel() or (apart.max() <= 1 and apart.float().mean() < 0.05)


@needs_triton
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_has_the_codes_of_their_definition_in_the_interpreter(
    shape: tuple[int, int], dtype: torch.dtype, kind: torch.dtype, interpreted: Callable[..., None]
) -> None:
    interpreted(check, shape, dtype, kind)


def check_no_numbers(device: str = "cpu") -> None:
    from inference_pio.kernels.triton.token_codes import code_tokens

    x = torch.tensor([[float("nan"), 1.0, 0.0], [1.0, float("inf"), 0.0], [0.0, 0.0, 0.0]], device=device)
    codes, scale = code_tokens(x, torch.int8)
    assert scale.isfinite().tolist() == [False, False, True]
    assert codes[2].tolist() == [0, 0, 0]


@needs_triton
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_what_is_no_number_stays_in_the_scale(interpreted: Callable[..., None]) -> None:
    interpreted(check_no_numbers)


@needs_triton
def test_what_it_cannot_serve_is_refused() -> None:
    from inference_pio.kernels.triton.token_codes import code_tokens

    for x, told in (
        (torch.zeros(2, 8, dtype=torch.float64), "float64"),
        (torch.zeros(2, 8, 2), "inputs"),
        (torch.zeros(8, 2).t(), "side by side"),
        (torch.zeros(2, 8, requires_grad=True), "backward"),
    ):
        with pytest.raises(InvalidSetting, match=told):
            code_tokens(x, torch.int8)


@needs_triton
@pytest.mark.parametrize(("capability", "kind"), [(80, torch.int8), (90, torch.int8), (90, FP8)])
@pytest.mark.parametrize("inputs", [2560, 9728])
def test_it_compiles_to_wide_loads_without_spilling(
    capability: int, kind: torch.dtype, inputs: int, compiler: Compiler
) -> None:
    from inference_pio.kernels.triton.token_codes import code_tokens, token_codes_kernel

    compiler.for_machine(capability, token_codes_kernel)
    code_tokens(torch.zeros(3, inputs, dtype=torch.bfloat16), kind)
    (code,) = compiler.found
    code.assert_it_fits(MACHINES[capability])
    assert code.counts["LDG 128"] > 0, code
    assert not code.counts["LDG U16"], code


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (8192, 2560), (700, 9728)])
def test_gpu_it_has_the_codes_of_their_definition(
    shape: tuple[int, int], dtype: torch.dtype, kind: torch.dtype
) -> None:
    check(shape, dtype, kind, "cuda")
    check_no_numbers("cuda")
