"""fp8 rows against their definition, on awkward shapes and in every dtype."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels import fp8
from inference_pio.kernels.fp8 import (
    FP8,
    bare,
    choose_fp8_backend,
    dequantize_rows_fp8,
    fp8_linear,
    naive_fp8_linear,
    quantize_rows_fp8,
)

SHAPES = [(1, 64, 48), (3, 96, 1), (9, 64, 131), (5, 100, 64), (2, 24, 6), (70, 40, 33), (1, 1, 1), (0, 64, 3)]


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_codes_are_within_half_a_step_of_the_weights(dtype: torch.dtype) -> None:
    weight = seeded(37, 53).mul(0.05).to(dtype)
    codes, scale = quantize_rows_fp8(weight)
    assert (codes.dtype, scale.dtype, codes.shape, scale.shape) == (torch.uint8, torch.bfloat16, (37, 53), (37,))
    error = (dequantize_rows_fp8(codes, scale, torch.float32) - weight.float()).abs()
    smallest = scale.float()[:, None] * 2**-10  # half of the smallest code
    assert (error <= torch.maximum(weight.float().abs() * 0.0626, smallest)).all()


def test_a_scale_that_rounds_down_never_makes_a_nan() -> None:
    weight = torch.linspace(0.5, 2.0, 4001)[:, None] * torch.tensor([1.0, -1.0, 0.3])
    codes, scale = quantize_rows_fp8(weight)
    assert codes.view(FP8).float().abs().max() == 448
    assert dequantize_rows_fp8(codes, scale, torch.float32).isfinite().all()


def test_rows_of_zeros_and_of_almost_nothing_stay_harmless() -> None:
    codes, scale = quantize_rows_fp8(torch.tensor([[0.0, 0.0], [1e-44, 0.0], [1.0, -1.0]]))
    assert (scale > 0).all()
    assert dequantize_rows_fp8(codes, scale, torch.float32)[0].tolist() == [0.0, 0.0]
    assert quantize_rows_fp8(torch.empty(3, 0))[1].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_code_is_what_torch_reads_in_it(dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    every = every[(every & 127) != 127]  # all but NaN
    assert torch.equal(bare(every, dtype), every.view(FP8).to(dtype))


def test_three_dimensional_weights_and_blocks_give_the_same_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = seeded(3, 50, 7)
    codes, scale = quantize_rows_fp8(weight)
    monkeypatch.setattr(fp8, "BLOCK_ELEMENTS", 100)
    for expert in range(3):
        alone = quantize_rows_fp8(weight[expert])
        assert torch.equal(codes[expert], alone[0])
        assert torch.equal(scale[expert], alone[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_product_is_its_definition(shape: tuple[int, int, int], dtype: torch.dtype, with_bias: bool) -> None:
    rows, inputs, outputs = shape
    x = seeded(rows, inputs).to(dtype)
    codes, scale = quantize_rows_fp8(seeded(outputs, inputs, seed=1))
    bias = seeded(outputs, seed=2).to(dtype) if with_bias else None
    got, want = fp8_linear(x, codes, scale, bias), naive_fp8_linear(x, codes, scale, bias)
    assert (got.dtype, got.shape) == (dtype, (rows, outputs))
    terms = x.float().pow(2) @ dequantize_rows_fp8(codes, scale, torch.float32).pow(2).T
    assert ((got - want).float().abs() <= 2**-7 * (terms.sqrt() + want.float().abs())).all()


def test_many_rows_are_multiplied_in_blocks_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    x = seeded(20, 64).bfloat16()
    codes, scale = quantize_rows_fp8(seeded(50, 64))
    whole = fp8_linear(x, codes, scale)
    monkeypatch.setattr(fp8, "BLOCK_ELEMENTS", 7 * 64)
    assert torch.equal(fp8_linear(x, codes, scale), whole)


def test_without_fast_bfloat16_products_are_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8, "has_fast_bfloat16_matmul", lambda: False)
    x = seeded(30, 64)
    codes, scale = quantize_rows_fp8(seeded(7, 64, seed=1))
    torch.testing.assert_close(fp8_linear(x, codes, scale), naive_fp8_linear(x, codes, scale), rtol=1e-5, atol=1e-5)


def test_a_float16_product_does_not_overflow_between_codes_and_scales() -> None:
    x = torch.full((16, 4096), 8.0, dtype=torch.float16)
    codes, scale = quantize_rows_fp8(torch.full((3, 4096), 0.01))
    assert fp8_linear(x, codes, scale).float().sub(8 * 4096 * 0.01).abs().max() < 3.0


def test_the_backend_is_named_for_each_device_and_dtype() -> None:
    assert choose_fp8_backend(torch.device("cpu"), torch.float32) == "cpu-fp8cast"
    assert choose_fp8_backend(torch.device("cpu"), torch.float64) == "dequantize"
    assert choose_fp8_backend(torch.device("meta"), torch.bfloat16) == "dequantize"


def test_gradients_flow_to_activations() -> None:
    x = seeded(2, 64).requires_grad_()
    codes, scale = quantize_rows_fp8(seeded(5, 64, seed=1))
    fp8_linear(x, codes, scale).sum().backward()
    torch.testing.assert_close(x.grad, dequantize_rows_fp8(codes, scale, torch.float32).sum(0).expand(2, 64))
