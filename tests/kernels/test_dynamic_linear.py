"""Products of coded activations and coded weights against their definition, on awkward shapes and in every dtype."""

from __future__ import annotations

import pytest
import torch

from inference_pio.compat import has_fast_int8_matmul, has_fp8_matmul
from inference_pio.kernels import dynamic_linear as room
from inference_pio.kernels.dynamic_linear import (
    FEWEST_ROWS,
    choose_dynamic_backend,
    dynamic_linear,
    naive_dynamic_linear,
    serves_dynamic,
    why_not_dynamic,
)
from inference_pio.kernels.fp8 import FP8, quantize_rows_fp8
from inference_pio.kernels.int8 import dequantize_rows, quantize_rows

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHAPES = [(1, 64, 48), (17, 32, 16), (70, 48, 160), (2, 16, 16), (0, 64, 32)]
MADE = {torch.int8: quantize_rows, FP8: quantize_rows_fp8}


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check(shape: tuple[int, int, int], kind: torch.dtype, dtype: torch.dtype, bias: bool, device: str = "cpu") -> None:
    rows, inputs, outputs = shape
    x = (seeded(rows, inputs) * torch.logspace(-2, 2, max(1, rows))[:rows, None]).to(device, dtype)
    codes, scale = (part.to(device) for part in MADE[kind](seeded(outputs, inputs, seed=1)))
    beside = seeded(outputs, seed=2).to(device, dtype) if bias else None
    got = dynamic_linear(x[None], codes, scale, beside)[0]
    want = naive_dynamic_linear(x, codes, scale, beside)
    assert (got.dtype, got.shape) == (dtype, (rows, outputs))
    steps = 2**-6 if kind is FP8 or dtype is torch.bfloat16 else 2**-9 if dtype is torch.float16 else 2**-20
    largest = want.float().abs().amax(-1, keepdim=True)
    assert ((got - want).float().abs() <= steps * largest).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_the_product_of_int8_is_its_definition(shape: tuple[int, int, int], dtype: torch.dtype, bias: bool) -> None:
    check(shape, torch.int8, dtype, bias)


def test_blocks_of_rows_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, (codes, scale) = seeded(101, 32), quantize_rows(seeded(48, 32, seed=1))
    whole = dynamic_linear(x, codes, scale)
    monkeypatch.setattr(room, "BLOCK_ELEMENTS", 48 * 40)
    assert torch.equal(dynamic_linear(x, codes, scale), whole)


@pytest.mark.parametrize("kind", [torch.int8, FP8])
def test_the_definition_is_near_to_the_plain_product(kind: torch.dtype) -> None:
    x, weight = seeded(40, 256), seeded(64, 256, seed=1)
    found, plain = naive_dynamic_linear(x, *MADE[kind](weight)), x @ weight.T
    assert (found - plain).norm() / plain.norm() < (0.012 if kind is torch.int8 else 0.05)


def test_gradients_reach_what_is_multiplied_and_never_the_codes() -> None:
    x, bias = seeded(20, 32).requires_grad_(), seeded(16, seed=2).requires_grad_()
    codes, scale = quantize_rows(seeded(16, 32, seed=1))
    dynamic_linear(x, codes, scale, bias).sum().backward()
    assert x.grad is not None
    assert bias.grad is not None
    torch.testing.assert_close(x.grad, dequantize_rows(codes, scale, torch.float32).sum(0).expand(20, 32))
    assert (bias.grad == 20).all()


def test_few_rows_odd_sizes_and_float64_are_left_to_others() -> None:
    codes, _ = quantize_rows(seeded(32, 64))
    assert serves_dynamic(seeded(FEWEST_ROWS, 64), codes) == has_fast_int8_matmul(CPU)
    assert not serves_dynamic(seeded(FEWEST_ROWS - 1, 64), codes)
    assert not serves_dynamic(seeded(40, 64).double(), codes)
    assert not serves_dynamic(seeded(40, 24), quantize_rows(seeded(32, 24))[0])
    assert not serves_dynamic(seeded(40, 64), quantize_rows(seeded(30, 64))[0])
    assert not serves_dynamic(seeded(40, 60), codes)  # torch says what does not fit
    assert not serves_dynamic(seeded(0, 64), codes)


def test_what_a_machine_lacks_is_told_with_the_way_out() -> None:
    assert "8.9" in str(why_not_dynamic(CPU, FP8))
    assert choose_dynamic_backend(CPU, FP8) == "none"
    assert (why_not_dynamic(CPU, torch.int8) is None) == has_fast_int8_matmul(CPU)
    assert not has_fp8_matmul(CPU)


def test_a_compiler_sees_one_graph() -> None:
    codes, scale = quantize_rows(seeded(32, 64, seed=1))

    def multiply(x: torch.Tensor) -> torch.Tensor:
        return dynamic_linear(x, codes, scale) if serves_dynamic(x, codes) else x

    x = seeded(40, 64)
    with torch.no_grad():
        found = torch.compile(multiply, backend="eager", fullgraph=True)(x)
    assert torch.equal(found, multiply(x))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [torch.int8, FP8])
@pytest.mark.parametrize("shape", [*SHAPES, (8192, 2560, 6144), (100, 9728, 2560)])
@pytest.mark.parametrize("bias", [False, True])
def test_gpu_products_are_their_definition(shape: tuple[int, int, int], kind: torch.dtype, bias: bool) -> None:
    check(shape, kind, torch.bfloat16, bias, "cuda")
