"""Rows of a table of codes, made weights: one program an id. The plain truth is `kernels.row_lookup`'s.

Ids are read on the device, so one recorded graph serves every token. They must be rows of the table, as tokens are that
steps choose.
"""

from __future__ import annotations

import torch

import triton
import triton.language as tl
from inference_pio.kernels.triton.launch import norm_warps, on_device
from inference_pio.kernels.triton.overlap import let_others_begin, overlapping, wait
from inference_pio.kernels.triton.rounding import held
from inference_pio.kernels.triton.row_codes import as_read, number, row_scale
from inference_pio.kernels.triton.row_support import supports_row_lookup
from inference_pio.kernels.triton.support import require


@triton.jit
def row_lookup_kernel(
    ids, codes, scale, out, codes_row, WIDTH: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    place, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = columns < WIDTH
    if DEPENDENT:  # in this order: kernels behind it read counts, written in front of it, before they wait themselves
        wait(INTERPRETED)
        let_others_begin(INTERPRETED)
    row = tl.load(ids + place).to(tl.int64)
    taken = number(tl.load(codes + row * codes_row + columns, mask=inside))
    factor = row_scale(tl.load(scale + row), codes.dtype.element_ty)
    tl.store(out + place * WIDTH + columns, held(taken * factor, out.dtype.element_ty), mask=inside)


def row_lookup(
    ids: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, *, dependent: bool = False
) -> torch.Tensor:
    """Rows `ids` [M] of the weights that codes [N, K] (int8, or fp8 in uint8) with scales [N] stand for: [M, K].

    `dependent`: it may begin before the launch in front, which may write `ids`, has ended. Raises InvalidSetting for
    tensors that `supports_row_lookup` refuses.
    """
    require(supports_row_lookup(ids, codes, scale, dtype))
    width = codes.shape[1]
    out = torch.empty((len(ids), width), dtype=dtype, device=codes.device)
    if out.numel():
        with on_device(codes):
            row_lookup_kernel[(len(ids),)](
                ids, as_read(codes), scale, out, codes.stride(0), WIDTH=width, BLOCK=triton.next_power_of_2(width),
                num_warps=norm_warps(width), enable_fp_fusion=False, **overlapping(dependent),
            )  # fmt: skip
    return out
