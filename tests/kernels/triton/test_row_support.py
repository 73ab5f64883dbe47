"""Which rows the Triton kernels cannot serve is told with its cause."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.gemv import gemv_parts
from inference_pio.kernels.triton.row_support import (
    supports_elementwise,
    supports_gemv,
    supports_rotary,
    supports_rotary_store,
    supports_rows,
)
from inference_pio.kernels.triton.support import Cause
from tests.kernels.triton.test_attention_support import lengths


@pytest.mark.usefixtures("gpu_everywhere")
def test_elementwise_kernels_tell_of_dtypes_layouts_and_gradients() -> None:
    x, weight = torch.zeros(2, 8), torch.zeros(8)
    assert supports_elementwise(x, None, weight)
    assert supports_elementwise(x, weight.half()).cause is Cause.DTYPE
    assert supports_elementwise(x.double(), weight.double()).cause is Cause.DTYPE
    assert supports_elementwise(x.T).cause is Cause.LAYOUT
    assert supports_elementwise(x, weight.to("meta")).cause is Cause.DEVICE
    learned = weight.clone().requires_grad_()
    assert supports_elementwise(x, learned).cause is Cause.GRADIENT
    with torch.no_grad():
        assert supports_elementwise(x, learned)


@pytest.mark.usefixtures("gpu_everywhere")
def test_rotary_kernels_tell_of_shapes() -> None:
    query, key, tables = torch.zeros(2, 5, 4, 16), torch.zeros(2, 5, 1, 16), torch.zeros(2, 5, 8)
    weight = torch.zeros(16)
    assert supports_rotary(query, key, tables, tables, (weight, None))
    assert supports_rotary(query, key, tables[:1], tables[:1])
    assert supports_rotary(query, key[:, :4], tables, tables).cause is Cause.SHAPE
    assert supports_rotary(query, key, tables[:, :4], tables[:, :4]).cause is Cause.SHAPE
    assert supports_rotary(query, key, tables[..., :7], tables[..., :7]).cause is Cause.SHAPE
    assert supports_rotary(query, key, tables, tables, (None, weight[:8])).cause is Cause.SHAPE


@pytest.mark.usefixtures("gpu_everywhere")
def test_storing_tells_of_shapes_and_counts() -> None:
    caches, table = torch.zeros(2, 9, 1, 16), torch.zeros(40, 8)
    given = [torch.zeros(2, 6 * 16), caches, caches, table, table, lengths(2), lengths(1)]
    assert supports_rotary_store(*given, heads=4)
    assert supports_rotary_store(*given, heads=3).cause is Cause.SHAPE
    assert supports_rotary_store(*given[:5], lengths(3), lengths(1), heads=4).cause is Cause.SHAPE
    assert supports_rotary_store(*given[:5], lengths(2), lengths(1, torch.int64), heads=4).cause is Cause.DTYPE
    assert supports_rotary_store(*given[:3], table[:, :7], table[:, :7], *given[5:], heads=4).cause is Cause.SHAPE


@pytest.mark.usefixtures("gpu_everywhere")
def test_rows_and_their_weights_belong_together() -> None:
    rows, weight = torch.zeros(2, 2, 64, dtype=torch.bfloat16)[:, 0], torch.zeros(5, 64, dtype=torch.bfloat16)
    codes = weight.to(torch.int8)
    assert supports_rows(rows, weight, weight[0])
    assert supports_rows(rows.float(), weight.float())
    assert supports_rows(rows, codes, codes=True)
    assert supports_rows(rows, codes).cause is Cause.DTYPE
    assert supports_rows(rows, weight.half()).cause is Cause.DTYPE
    assert supports_rows(rows.double(), weight.double()).cause is Cause.DTYPE
    assert supports_rows(rows.T, weight).cause is Cause.LAYOUT
    assert supports_rows(rows, weight.T).cause is Cause.LAYOUT
    assert supports_rows(rows[0], weight).cause is Cause.LAYOUT
    assert supports_rows(rows, weight.to("meta")).cause is Cause.DEVICE
    assert supports_rows(rows, weight.clone().requires_grad_()).cause is Cause.GRADIENT


def test_rows_on_a_cpu_are_told() -> None:
    assert supports_rows(torch.zeros(1, 64), torch.zeros(5, 64)).cause in (Cause.DEVICE, Cause.NO_TRITON)


@pytest.mark.usefixtures("gpu_everywhere")
def test_a_product_of_a_few_rows_has_its_reasons_too() -> None:
    x, weight, codes = torch.zeros(2, 64), torch.zeros(6, 64), torch.zeros(6, 64, dtype=torch.int8)
    scale, half = torch.ones(6), torch.ones(6, dtype=torch.bfloat16)

    def asked(x=x, weights=(weight,), norm_weight=None, residual=None, out=None, **given):  # type: ignore[no-untyped-def]
        return supports_gemv(x, gemv_parts(x, weights, **given), norm_weight, residual, out)

    assert asked()
    assert asked(weights=(codes, codes), scales=(half, half), norm_weight=torch.ones(64), out=torch.zeros(2, 12))
    assert asked(torch.zeros(9, 64)).cause is Cause.SHAPE
    assert asked(x.double(), (weight.double(),)).cause is Cause.DTYPE
    assert asked(out=torch.zeros(2, 6, dtype=torch.int32)).cause is Cause.DTYPE
    assert asked(weights=(codes, codes), scales=(scale, half)).cause is Cause.DTYPE
    assert asked(weights=(weight, weight), biases=(scale, half)).cause is Cause.DTYPE
    assert asked(weights=(weight, weight), biases=(scale, None))
    assert asked(torch.zeros(64, 2).mT).cause is Cause.LAYOUT
    assert asked(weights=(torch.zeros(64, 6).mT,)).cause is Cause.LAYOUT
    assert asked(residual=torch.zeros(6, 2).mT).cause is Cause.LAYOUT
    assert asked(norm_weight=torch.ones(128)[::2]).cause is Cause.LAYOUT
    assert asked(weights=(weight.to("meta"),)).cause is Cause.DEVICE
    learned = weight.clone().requires_grad_()
    assert asked(weights=(learned,)).cause is Cause.GRADIENT
    with torch.no_grad():
        assert asked(weights=(learned,))
