"""What stands around the sums of a few rows times weights: norms, scales, biases, gates, residuals."""

from __future__ import annotations

import triton
import triton.language as tl
from inference_pio.kernels.triton.row_codes import row_scale


@triton.jit
def read_residual(residual_places, stored, BATCH: tl.constexpr, ROWS: tl.constexpr, ADDED: tl.constexpr):
    """What is added to the products, asked for before they are known: at the end it would have to be waited for."""
    if ADDED:
        return tl.load(residual_places, mask=stored, other=0.0)
    else:
        return tl.zeros([BATCH, ROWS], tl.float32)


@triton.jit
def read_vector(places, row, meant, HELD: tl.constexpr):
    """Scales, or biases, of rows."""
    if HELD:
        return tl.load(places + row, mask=meant, other=0.0)[None, :]
    else:
        return 0.0


@triton.jit
def finished(total, normal, scale, bias, CODES: tl.constexpr, NORMED: tl.constexpr, SCALED: tl.constexpr,
             BIASED: tl.constexpr):  # fmt: skip
    """Products, and what stands behind the sum: the norm of each row, scales, biases."""
    if NORMED:
        total = total * normal
    if SCALED:
        total = total * row_scale(scale, CODES)
    if BIASED:
        total = total + bias.to(tl.float32)
    return total


@triton.jit
def gated_by(total, up):
    return total / (1.0 + tl.exp(-total)) * up
