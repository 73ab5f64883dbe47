"""Weights of one byte with one scale a row, known by their dtype: int8 codes, and fp8 codes as the bits in uint8."""

from __future__ import annotations

from torch import Tensor, float32, int8, uint8

from inference_pio.kernels import fp8 as eight_bits
from inference_pio.kernels import int8 as whole_numbers

ROW_CODES = (int8, uint8)


def is_row_codes(weight: Tensor) -> bool:
    """Whether a weight is codes that go with scales.

    >>> import torch
    >>> is_row_codes(torch.zeros(1, dtype=torch.uint8)), is_row_codes(torch.zeros(1))
    (True, False)
    """
    return weight.dtype in ROW_CODES


def bare_values(weight: Tensor) -> Tensor:
    """Codes without their scales, or plain weights, in float32."""
    return eight_bits.bare(weight, float32) if weight.dtype is uint8 else weight.float()


def scaled_values(codes: Tensor, scale: Tensor, dtype: object) -> Tensor:
    """The weights [..., N, K] that codes and their scales [..., N] stand for, in a dtype."""
    dequantize = eight_bits.dequantize_rows_fp8 if codes.dtype is uint8 else whole_numbers.dequantize_rows
    return dequantize(codes, scale, dtype)  # type: ignore[arg-type]


def coded_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` [..., K] times codes [N, K] with scales [N]: [..., N] in the dtype of `x`."""
    product = eight_bits.fp8_linear if codes.dtype is uint8 else whole_numbers.int8_linear
    return product(x, codes, scale, bias)
