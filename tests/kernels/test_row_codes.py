"""Codes of a byte are told apart by their dtype, and each is multiplied and decoded as its format says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_pio.kernels.fp8 import naive_fp8_linear, quantize_rows_fp8
from inference_pio.kernels.int8 import naive_int8_linear, quantize_rows
from inference_pio.kernels.row_codes import bare_values, coded_linear, is_codes, scaled_values


@pytest.mark.parametrize(
    ("quantize", "naive"), [(quantize_rows, naive_int8_linear), (quantize_rows_fp8, naive_fp8_linear)]
)
def test_products_and_values_are_those_of_the_format(quantize: Any, naive: Any) -> None:
    chance = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=chance) for shape in ((3, 64), (5, 64)))
    codes, scale = quantize(weight)
    assert is_codes(codes)
    torch.testing.assert_close(coded_linear(x, codes, scale), naive(x, codes, scale), rtol=2e-2, atol=5e-2)
    values = scaled_values(codes, scale, torch.float32)
    torch.testing.assert_close(bare_values(codes) * scale.float()[:, None], values)
    torch.testing.assert_close(values, weight, rtol=0.07, atol=0.05)


def test_plain_weights_are_no_codes() -> None:
    weight = torch.ones(2, 2, dtype=torch.bfloat16)
    assert not is_codes(weight)
    assert torch.equal(bare_values(weight), weight.float())
