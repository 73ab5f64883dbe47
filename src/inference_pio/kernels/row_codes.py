"""Weights as codes with scales: a byte with one scale a row (int8, or the bits of fp8 in uint8), or half a byte in
groups, each with a grid (int4): known by their dtype, and by the shape of what goes with them."""

from __future__ import annotations

from torch import Tensor, float32, int8, int32, uint8

from inference_pio.kernels import fp8 as eight_bits
from inference_pio.kernels import int4 as half_bytes
from inference_pio.kernels import int8 as whole_numbers

ROW_CODES = (int8, uint8)
CODES = (*ROW_CODES, int32)


def is_codes(weight: Tensor) -> bool:
    """Whether a weight is codes that go with scales.

    >>> import torch
    >>> is_codes(torch.zeros(1, dtype=torch.uint8)), is_codes(torch.zeros(1))
    (True, False)
    """
    return weight.dtype in CODES


def in_groups(weight: Tensor, scale: Tensor | None) -> bool:
    """Whether codes [..., N, K / 2] (or K / 8 in int32) go with grids [..., K / group, N, 2]."""
    return scale is not None and scale.dim() == weight.dim() + 1


def inputs_of(weight: Tensor, scale: Tensor | None) -> int:
    """How many inputs a weight [..., N, K], or its codes, multiplies."""
    packed = 1 if not in_groups(weight, scale) else 2 * weight.element_size()
    return weight.shape[-1] * packed


def group_of(weight: Tensor, scale: Tensor | None) -> int:
    """How many weights of a row share a grid; 0 where a row has one scale, or none.

    >>> import torch
    >>> group_of(torch.zeros(8, 64, dtype=torch.int8), torch.ones(4, 8, 2)), group_of(torch.ones(8, 64), None)
    (32, 0)
    """
    if scale is None or not in_groups(weight, scale):
        return 0
    return inputs_of(weight, scale) // scale.shape[-3]


def bare_values(weight: Tensor) -> Tensor:
    """Codes without their scales, or plain weights, in float32."""
    return eight_bits.bare(weight, float32) if weight.dtype is uint8 else weight.float()


def scaled_values(codes: Tensor, scale: Tensor, dtype: object) -> Tensor:
    """The weights [..., N, K] that codes and their scales [..., N], or grids, stand for, in a dtype."""
    if in_groups(codes, scale):
        return half_bytes.dequantize_groups(codes, scale, dtype)  # type: ignore[arg-type]
    dequantize = eight_bits.dequantize_rows_fp8 if codes.dtype is uint8 else whole_numbers.dequantize_rows
    return dequantize(codes, scale, dtype)  # type: ignore[arg-type]


def coded_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` [..., K] times codes of weights [N, K] with their scales: [..., N] in the dtype of `x`."""
    if in_groups(codes, scale):
        return half_bytes.int4_linear(x, codes, scale, bias)
    product = eight_bits.fp8_linear if codes.dtype is uint8 else whole_numbers.int8_linear
    return product(x, codes, scale, bias)
