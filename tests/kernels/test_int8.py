"""int8 rows against their definition, on awkward shapes and in every dtype."""

from __future__ import annotations

import pytest
import torch

from inference_pio import compat
from inference_pio.kernels import few_coded_rows, int8
from inference_pio.kernels.fp8 import choose_fp8_backend
from inference_pio.kernels.int8 import (
    choose_int8_backend,
    dequantize_rows,
    int8_linear,
    naive_int8_linear,
    quantize_rows,
)
from inference_pio.kernels.triton import support

CPU = torch.device("cpu")
# rows, inputs, outputs: below and above the packed limit, widths on which the packed matmul would read out of bounds
SHAPES = [
    (1, 64, 48),
    (3, 96, 1),
    (8, 32, 7),
    (9, 64, 131),
    (5, 100, 64),
    (2, 24, 6),
    (70, 40, 33),
    (1, 1, 1),
    (0, 64, 3),
]


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_codes_are_within_half_a_step_of_the_weights(dtype: torch.dtype) -> None:
    weight = seeded(37, 53).mul(0.05).to(dtype)
    q, scale = quantize_rows(weight)
    assert (q.dtype, scale.dtype, q.shape, scale.shape) == (torch.int8, torch.bfloat16, (37, 53), (37,))
    assert q.abs().max() == 127
    error = (dequantize_rows(q, scale, torch.float32) - weight.float()).abs()
    assert (error <= scale.float()[:, None] * 0.502).all()


def test_a_scale_that_rounds_down_never_sends_a_code_over_127() -> None:
    weight = torch.linspace(0.5, 2.0, 4001)[:, None] * torch.tensor([1.0, -1.0, 0.3])
    q, scale = quantize_rows(weight)
    assert q.min() == -127
    assert q.max() == 127
    assert ((dequantize_rows(q, scale, torch.float32) - weight).abs() <= scale.float()[:, None] * 0.502).all()


def test_rows_of_zeros_and_of_almost_nothing_stay_harmless() -> None:
    weight = torch.tensor([[0.0, 0.0], [1e-44, 0.0], [1.0, -1.0]])
    q, scale = quantize_rows(weight)
    assert (scale > 0).all()
    assert dequantize_rows(q, scale, torch.float32)[0].tolist() == [0.0, 0.0]
    assert dequantize_rows(q, scale, torch.float32).isfinite().all()


def test_three_dimensional_weights_are_quantized_one_expert_at_a_time() -> None:
    weight = seeded(3, 10, 7)
    q, scale = quantize_rows(weight)
    assert scale.shape == (3, 10)
    for expert in range(3):
        alone = quantize_rows(weight[expert])
        assert torch.equal(q[expert], alone[0])
        assert torch.equal(scale[expert], alone[1])


def test_blocks_and_strides_do_not_change_the_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = seeded(50, 33)
    whole = quantize_rows(weight)
    monkeypatch.setattr(int8, "BLOCK_ELEMENTS", 100)
    for other in (quantize_rows(weight), quantize_rows(weight.t().contiguous().t())):
        assert torch.equal(whole[0], other[0])
        assert torch.equal(whole[1], other[1])


@pytest.mark.parametrize("shape", [(6, 4), (2, 6, 4), (3, 0)])
def test_the_meta_device_gives_shapes_without_values(shape: tuple[int, ...]) -> None:
    q, scale = quantize_rows(torch.empty(shape, device="meta"))
    assert (q.is_meta, q.shape, scale.is_meta, scale.shape) == (True, shape, True, shape[:-1])


def test_quantizing_again_what_was_dequantized_gives_the_same_codes() -> None:
    q, scale = quantize_rows(seeded(20, 30))
    again = quantize_rows(dequantize_rows(q, scale, torch.float32))
    assert torch.equal(again[0], q)
    assert torch.equal(again[1], scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_product_is_its_definition(shape: tuple[int, int, int], dtype: torch.dtype, with_bias: bool) -> None:
    rows, inputs, outputs = shape
    x = seeded(rows, inputs).to(dtype)
    q, scale = quantize_rows(seeded(outputs, inputs, seed=1))
    bias = seeded(outputs, seed=2).to(dtype) if with_bias else None
    got, want = int8_linear(x, q, scale, bias), naive_int8_linear(x, q, scale, bias)
    assert (got.dtype, got.shape) == (dtype, (rows, outputs))
    assert_close(got, want, x, q, scale)


def assert_close(got: torch.Tensor, want: torch.Tensor, x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> None:
    """Within bfloat16's rounding of the terms of each sum, and of the sum."""
    terms = x.float().pow(2) @ (q.float() * scale.float()[:, None]).pow(2).T
    assert ((got - want).float().abs() <= 2**-7 * (terms.sqrt() + want.float().abs())).all()


@pytest.mark.parametrize("shape", [(64,), (1, 1, 64), (2, 3, 64), (1, 2, 9, 64)])
def test_leading_dimensions_are_kept(shape: tuple[int, ...]) -> None:
    x = seeded(*shape).bfloat16()
    q, scale = quantize_rows(seeded(5, 64))
    assert int8_linear(x, q, scale).shape == (*shape[:-1], 5)


@pytest.mark.parametrize("rows", [4, 40])
def test_strided_activations_are_read_where_they_stand(rows: int) -> None:
    wide = seeded(rows, 3, 128).bfloat16()
    q, scale = quantize_rows(seeded(5, 64))
    for view in (wide[:, 1, 64:], wide[:, :, 32:96].transpose(0, 1), wide[:1, 0, :64].expand(rows, 64)):
        assert torch.equal(int8_linear(view, q, scale), int8_linear(view.contiguous(), q, scale))


def test_a_wrong_width_is_an_error_and_not_a_reshape() -> None:
    q, scale = quantize_rows(seeded(5, 64))
    for rows in (2, 32):
        with pytest.raises(RuntimeError):
            int8_linear(seeded(rows, 96).bfloat16(), q, scale)


def test_many_rows_are_multiplied_in_blocks_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    x = seeded(20, 64).bfloat16()
    q, scale = quantize_rows(seeded(50, 64))
    whole = int8_linear(x, q, scale)
    monkeypatch.setattr(int8, "BLOCK_ELEMENTS", 7 * 64)
    assert torch.equal(int8_linear(x, q, scale), whole)


def test_a_float16_product_does_not_overflow_between_codes_and_scales() -> None:
    x = torch.full((16, 4096), 8.0, dtype=torch.float16)
    q, scale = quantize_rows(torch.full((3, 4096), 0.01))
    assert int8_linear(x, q, scale).float().sub(8 * 4096 * 0.01).abs().max() < 2.0


@pytest.mark.parametrize("rows", [1, 30])
@pytest.mark.parametrize("inputs", [64, 40])
def test_without_the_packed_matmul_the_weights_are_dequantized(
    rows: int, inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "_CHOSEN", {})
    monkeypatch.setattr(int8, "has_int8_packed_matmul", lambda: False)
    assert choose_int8_backend(CPU, torch.float32) == "dequantize"
    x = seeded(rows, inputs)
    q, scale = quantize_rows(seeded(7, inputs, seed=1))
    torch.testing.assert_close(int8_linear(x, q, scale), naive_int8_linear(x, q, scale), rtol=1e-5, atol=1e-5)


def test_without_fast_bfloat16_many_rows_are_multiplied_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "has_fast_bfloat16_matmul", lambda: False)
    x = seeded(30, 64)
    q, scale = quantize_rows(seeded(7, 64, seed=1))
    torch.testing.assert_close(int8_linear(x, q, scale), naive_int8_linear(x, q, scale), rtol=1e-5, atol=1e-5)


def test_the_backend_is_named_for_each_device_and_dtype() -> None:
    packed = "cpu-int8pack" if compat.has_int8_packed_matmul() else "dequantize"
    assert choose_int8_backend(CPU, torch.bfloat16) == packed
    assert choose_int8_backend(CPU, torch.float64) == "dequantize"
    assert choose_int8_backend(torch.device("meta"), torch.bfloat16) == "dequantize"


@pytest.mark.parametrize("runs", [True, False])
def test_a_gpu_that_cannot_run_our_kernel_has_torchs(runs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "_CHOSEN", {})
    reason = support.YES if runs else support.Support(support.Cause.DEVICE, "it needs compute capability 8.0")
    monkeypatch.setattr(few_coded_rows, "supports_device", lambda device: reason)
    for choose in (choose_int8_backend, choose_fp8_backend):
        assert choose(torch.device("cuda", 0), torch.bfloat16) == ("triton" if runs else "dequantize")
        assert choose(torch.device("cuda", 0), torch.float64) == "dequantize"


@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_flow_to_activations_and_bias(rows: int, dtype: torch.dtype) -> None:
    q, scale = quantize_rows(seeded(5, 64, seed=1))
    x, bias = seeded(rows, 64).to(dtype).requires_grad_(), seeded(5, seed=2).to(dtype).requires_grad_()
    frozen = int8_linear(x.detach(), q, scale, bias.detach())
    y = int8_linear(x, q, scale, bias)
    assert torch.equal(y, frozen)
    (y * torch.arange(1, 6)).sum().backward()
    want = torch.arange(1, 6).expand(rows, 5).to(dtype) @ dequantize_rows(q, scale, dtype)
    torch.testing.assert_close(x.grad, want)
    torch.testing.assert_close(bias.grad, torch.arange(1, 6).mul(rows).to(dtype))


def test_the_graph_holds_no_dequantized_weights() -> None:
    q, scale = quantize_rows(seeded(5, 64))
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one) or one, lambda one: one):
        int8_linear(seeded(2, 64).requires_grad_(), q, scale)
    assert {tensor.dtype for tensor in saved} == {torch.int8, torch.bfloat16}
