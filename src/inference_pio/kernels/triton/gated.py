"""SiLU of a gate times what goes through it. The plain truth is `kernels.gated.naive_silu_mul`."""

from __future__ import annotations

import torch

import triton
import triton.language as tl
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.triton.launch import on_device
from inference_pio.kernels.triton.rounding import held, rounded, silu
from inference_pio.kernels.triton.row_support import supports_elementwise
from inference_pio.kernels.triton.support import require

COLUMNS = 1024
"""Columns of a row that one program of 4 warps takes: 8 a thread."""


@triton.jit
def silu_mul_kernel(gate, up, out, gate_step, up_step, width, BLOCK: tl.constexpr):
    row, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    DTYPE: tl.constexpr = out.dtype.element_ty
    opened = tl.load(gate + row * gate_step + columns, mask=inside, other=0.0).to(tl.float32)
    through = tl.load(up + row * up_step + columns, mask=inside, other=0.0).to(tl.float32)
    product = rounded(silu(opened), DTYPE) * through
    tl.store(out + row * width + columns, held(product, DTYPE), mask=inside)


def silu_mul(gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
    """`silu(gate) * up` for two tensors [..., I], or for one [..., 2I] that holds gate and up side by side.

    Raises InvalidSetting for tensors that `supports_elementwise` refuses.
    """
    if up is None:
        gate, up = gate.chunk(2, -1)
    require(supports_elementwise(gate, up))
    if gate.shape != up.shape:
        raise InvalidSetting(f"a gate {tuple(gate.shape)} and what it opens {tuple(up.shape)} must be of one shape.")
    width = gate.shape[-1]
    out = torch.empty_like(gate, memory_format=torch.contiguous_format)
    gates, ups = gate.reshape(-1, width), up.reshape(-1, width)
    if out.numel():
        block = min(COLUMNS, triton.next_power_of_2(width))
        with on_device(gate):
            silu_mul_kernel[(len(gates), triton.cdiv(width, block))](
                gates, ups, out, gates.stride(0), ups.stride(0), width, BLOCK=block, num_warps=4,
                enable_fp_fusion=False,
            )  # fmt: skip
    return out
