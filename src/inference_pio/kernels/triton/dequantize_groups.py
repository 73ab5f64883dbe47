"""Weights of half a byte in groups as whole numbers again, in one launch: what many rows are multiplied with.

The plain truth is `kernels.int4.dequantize_groups`. Four bytes of words become sixteen of weights: written once, they
cost what memory takes, where torch's operations would write each step.
"""

from __future__ import annotations

import torch

import triton
import triton.language as tl
from inference_pio.compat import triton_interprets
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.triton.group_codes import ABOVE_MIDDLE, CODES_OF_A_WORD, eight
from inference_pio.kernels.triton.launch import on_device

WORDS = 256
"""Words of a row that one program of 4 warps takes: two a thread, 32 bytes of weights."""


@triton.jit
def in_order(c0, c1, c2, c3, c4, c5, c6, c7):
    """Eight neighbours of each word behind one another along a new axis of 2 x 2 x 2."""
    even = tl.join(tl.join(c0, c4), tl.join(c2, c6))
    odd = tl.join(tl.join(c1, c5), tl.join(c3, c7))
    return tl.join(even, odd)


@triton.jit
def dequantize_groups_kernel(
    codes, grids, out, code_step, grid_step, columns, GROUP: tl.constexpr, WORDS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    inside = word * 8 < columns
    held = tl.load(codes + row * code_step + word, mask=inside, other=0, eviction_policy="evict_first")
    grid = tl.load(grids + (word * 8 // GROUP) * grid_step + row, mask=inside, other=0)
    step = (grid << 16).to(tl.float32, bitcast=True)
    middle = ((grid >> 16) << 16).to(tl.float32, bitcast=True)
    c0, c1, c2, c3, c4, c5, c6, c7 = eight(held, INTERPRETED)
    found = in_order(
        weight(c0, step, middle), weight(c1, step, middle), weight(c2, step, middle), weight(c3, step, middle),
        weight(c4, step, middle), weight(c5, step, middle), weight(c6, step, middle), weight(c7, step, middle),
    )  # fmt: skip
    column = tl.program_id(1) * (8 * WORDS) + tl.arange(0, 8 * WORDS)
    found = tl.reshape(found, [8 * WORDS]).to(out.dtype.element_ty)
    tl.store(out + row * columns + column, found, mask=column < columns)


@triton.jit
def weight(code, step, middle):
    return (code - ABOVE_MIDDLE) * step + middle


def dequantize_groups(words: torch.Tensor, grids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weights [N, K] of words int32 [N, K / 8] with grids bfloat16 [K / group, N, 2], in a floating dtype.

    Raises InvalidSetting for codes in another layout. Nothing waits for the device.
    """
    if words.dtype is not torch.int32 or words.dim() != 2 or words.stride(1) != 1 or grids.stride()[1:] != (2, 1):
        raise InvalidSetting(
            f"codes of {words.dtype} and shape {tuple(words.shape)} are no words [N, K / 8] that lie side by side: "
            "kernels.int4.words_of makes them."
        )
    rows, columns = words.shape[0], words.shape[1] * CODES_OF_A_WORD
    out = torch.empty(rows, columns, dtype=dtype, device=words.device)
    held = min(WORDS, triton.next_power_of_2(words.shape[1]))
    with on_device(words):
        dequantize_groups_kernel[(rows, triton.cdiv(words.shape[1], held))](
            words, grids.view(torch.int32), out, words.stride(0), grids.stride(0) // 2, columns,
            GROUP=columns // len(grids), WORDS=held, INTERPRETED=triton_interprets(), num_warps=4,
        )  # fmt: skip
    return out
