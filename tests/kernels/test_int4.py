"""int4 groups against their definition, on awkward shapes, in every dtype and in both layouts."""

from __future__ import annotations

import pytest
import torch

from inference_pio import compat
from inference_pio.kernels import few_coded_rows, int4
from inference_pio.kernels.int4 import (
    choose_int4_backend,
    dequantize_groups,
    fit_grid,
    grid_values,
    int4_linear,
    naive_int4_linear,
    pack_codes,
    portable_codes,
    quantize_groups,
    round_to_grid,
    settled_codes,
    unpack_codes,
)
from inference_pio.kernels.triton import support

CPU = torch.device("cpu")
# rows, inputs, group, outputs: below and above the packed limit, outputs that fill blocks and that do not
SHAPES = [
    (1, 64, 32, 64), (3, 96, 32, 1), (8, 128, 64, 128), (9, 64, 64, 131), (140, 256, 128, 64), (140, 96, 32, 33),
    (1, 32, 32, 16), (0, 64, 32, 64),
]  # fmt: skip


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_rounding_error(weight: torch.Tensor, group: int) -> torch.Tensor:
    """The squared error of rounding between a group's extremes."""
    groups = weight.unflatten(-1, (-1, group))
    low, step = groups.amin(-1, keepdim=True), (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15
    return (((groups - low) / step).round() * step + low - groups).square().sum()


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_codes_lose_less_than_rounding_between_the_extremes(dtype: torch.dtype, group: int) -> None:
    weight = seeded(40, 256).mul(0.05).to(dtype)
    codes, scale = quantize_groups(weight, group)
    assert (codes.dtype, codes.shape) == (torch.int8, (40, 128))
    assert (scale.dtype, scale.shape) == (torch.bfloat16, (256 // group, 40, 2))
    error = (dequantize_groups(codes, scale, torch.float32) - weight.float()).square().sum()
    assert error < 0.97 * naive_rounding_error(weight.float(), group)


def test_what_lies_on_a_grid_already_is_kept_exactly() -> None:
    grid = torch.tensor([[0.25, -1.5], [0.5, 3.0]]).bfloat16()
    weights = grid_values(torch.arange(32).remainder(16).float().expand(2, 32), grid)
    assert torch.equal(fit_grid(weights), grid)
    assert torch.equal(grid_values(round_to_grid(weights, grid), grid), weights)


@pytest.mark.parametrize("value", [0.0, 1e-44, 0.5, -3.0])
def test_groups_of_one_value_are_kept(value: float) -> None:
    weight = torch.full((16, 64), value)
    codes, scale = quantize_groups(weight, 32)
    assert (scale[..., 0] > 0).all()
    assert torch.equal(dequantize_groups(codes, scale, torch.float32), weight.bfloat16().float())


def test_a_group_of_one_outlier_stays_finite() -> None:
    weight = seeded(16, 32).mul(1e-3)
    weight[:, 3] = 1e4
    codes, scale = quantize_groups(weight, 32)
    found = dequantize_groups(codes, scale, torch.float32)
    assert found.isfinite().all()
    assert (found[:, 3] - 1e4).abs().max() < 100


def test_experts_blocks_and_strides_do_not_change_the_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = seeded(3, 50, 64)
    codes, scale = quantize_groups(weight, 32)
    monkeypatch.setattr(int4, "BLOCK_ELEMENTS", 500)
    for expert in range(3):
        for same in (weight[expert], weight[expert].t().contiguous().t()):
            alone = quantize_groups(same, 32)
            assert torch.equal(codes[expert], alone[0])
            assert torch.equal(scale[expert], alone[1])


@pytest.mark.parametrize("shape", [(6, 64), (2, 6, 64)])
def test_the_meta_device_gives_shapes_without_values(shape: tuple[int, ...]) -> None:
    codes, scale = quantize_groups(torch.empty(shape, device="meta"), 32)
    assert (codes.is_meta, codes.shape, scale.is_meta) == (True, (*shape[:-1], 32), True)
    assert scale.shape == (*shape[:-2], 2, 6, 2)


def test_two_codes_lie_in_a_byte_sixteen_places_apart() -> None:
    codes = torch.randint(0, 16, (3, 5, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    packed = pack_codes(codes).view(torch.uint8)
    assert torch.equal(packed[..., 16], codes[..., 32] | codes[..., 48] << 4)
    assert torch.equal(unpack_codes(packed.view(torch.int8)), codes)


@pytest.mark.parametrize("shape", [(64, 32), (128, 96), (2, 192, 64), (48, 64), (0, 64), (131, 64)])
def test_layouts_are_inverse_to_one_another(shape: tuple[int, ...]) -> None:
    codes = torch.randint(0, 16, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    packed = pack_codes(codes)
    settled = settled_codes(packed)
    order = compat.int4_packed_order()
    fills = order is not None and shape[-2] % len(order) == 0 and bool(codes.numel())
    assert settled.dtype is (torch.uint8 if fills else torch.int8)
    assert torch.equal(portable_codes(settled), packed)
    assert torch.equal(unpack_codes(settled), codes)


@pytest.mark.parametrize("settle", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_product_is_its_definition(
    shape: tuple[int, int, int, int], dtype: torch.dtype, with_bias: bool, settle: bool
) -> None:
    rows, inputs, group, outputs = shape
    x = seeded(rows, inputs).to(dtype)
    codes, scale = quantize_groups(seeded(outputs, inputs, seed=1), group)
    bias = seeded(outputs, seed=2).to(dtype) if with_bias else None
    got = int4_linear(x, settled_codes(codes) if settle else codes, scale, bias)
    want = naive_int4_linear(x, unpack_codes(codes), scale, bias)
    assert (got.dtype, got.shape) == (dtype, (rows, outputs))
    terms = x.float().pow(2) @ dequantize_groups(codes, scale, torch.float32).pow(2).T
    bound = 1.3 * 2**-7 * (terms.sqrt() + want.float().abs())  # activations and weights are rounded, and the sum
    assert ((got - want).float().abs() <= bound).all()


@pytest.mark.parametrize("outputs", [48, 128])
@pytest.mark.parametrize("shape", [(64,), (1, 1, 64), (2, 3, 64), (150, 2, 64)])
def test_leading_dimensions_are_kept(shape: tuple[int, ...], outputs: int) -> None:
    codes, scale = quantize_groups(seeded(outputs, 64), 32)
    assert int4_linear(seeded(*shape).bfloat16(), settled_codes(codes), scale).shape == (*shape[:-1], outputs)


@pytest.mark.parametrize("rows", [4, 140])
def test_strided_activations_are_read_where_they_stand(rows: int) -> None:
    wide = seeded(rows, 3, 128).bfloat16()
    codes, scale = quantize_groups(seeded(64, 64), 32)
    codes = settled_codes(codes)
    for view in (wide[:, 1, 64:], wide[:, :, 32:96].transpose(0, 1), wide[:1, 0, :64].expand(rows, 64)):
        assert torch.equal(int4_linear(view, codes, scale), int4_linear(view.contiguous(), codes, scale))


@pytest.mark.parametrize("rows", [2, 140])
@pytest.mark.parametrize("outputs", [48, 64])
def test_a_wrong_width_is_an_error_and_not_a_reshape(rows: int, outputs: int) -> None:
    codes, scale = quantize_groups(seeded(outputs, 64), 32)
    with pytest.raises(RuntimeError):
        int4_linear(seeded(rows, 96).bfloat16(), settled_codes(codes), scale)


@pytest.mark.parametrize("settle", [False, True])
def test_many_rows_are_multiplied_in_blocks_with_the_same_result(settle: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x = seeded(140, 64).bfloat16()
    codes, scale = quantize_groups(seeded(320, 64), 32)
    codes = settled_codes(codes) if settle else codes
    whole = int4_linear(x, codes, scale)
    monkeypatch.setattr(int4, "BLOCK_ELEMENTS", 70 * 64)
    assert torch.equal(int4_linear(x, codes, scale), whole)


def test_without_the_packed_product_weights_are_dequantized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int4, "_CHOSEN", {})
    monkeypatch.setattr(int4, "int4_packed_order", lambda: None)
    assert choose_int4_backend(CPU, torch.float32) == "dequantize"
    codes, scale = quantize_groups(seeded(64, 64, seed=1), 32)
    assert settled_codes(codes) is codes
    for rows in (3, 140):
        x = seeded(rows, 64)
        want = naive_int4_linear(x, unpack_codes(codes), scale)
        torch.testing.assert_close(int4_linear(x, codes, scale), want, rtol=1e-5, atol=1e-5)


def test_the_backend_is_named_for_each_device_and_dtype() -> None:
    packed = "cpu-int4pack" if compat.int4_packed_order() is not None else "dequantize"
    assert choose_int4_backend(CPU, torch.bfloat16) == packed
    assert choose_int4_backend(CPU, torch.float64) == "dequantize"
    assert choose_int4_backend(torch.device("meta"), torch.bfloat16) == "dequantize"


@pytest.mark.parametrize("runs", [True, False])
def test_a_gpu_that_cannot_run_our_kernels_has_torchs(runs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int4, "_CHOSEN", {})
    reason = support.YES if runs else support.Support(support.Cause.DEVICE, "it needs compute capability 8.0")
    monkeypatch.setattr(few_coded_rows, "supports_device", lambda device: reason)
    assert choose_int4_backend(torch.device("cuda", 0), torch.bfloat16) == ("triton" if runs else "dequantize")
    assert choose_int4_backend(torch.device("cuda", 0), torch.float64) == "dequantize"


@pytest.mark.parametrize("settle", [False, True])
def test_gradients_flow_to_activations_and_bias(settle: bool) -> None:
    codes, scale = quantize_groups(seeded(64, 64, seed=1), 32)
    codes = settled_codes(codes) if settle else codes
    x, bias = seeded(2, 64).requires_grad_(), seeded(64, seed=2).requires_grad_()
    int4_linear(x, codes, scale, bias).sum().backward()
    torch.testing.assert_close(x.grad, dequantize_groups(codes, scale, torch.float32).sum(0).expand(2, 64))
    assert torch.equal(bias.grad, torch.full((64,), 2.0))
