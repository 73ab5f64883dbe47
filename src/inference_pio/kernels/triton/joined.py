"""Attention over two sets of keys made one, in one pass. The plain truth is `kernels.joined_attention.naive_join`."""

from __future__ import annotations

import torch

import triton
import triton.language as tl
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.triton.launch import on_device
from inference_pio.kernels.triton.rounding import held
from inference_pio.kernels.triton.support import require, supports_elementwise

ELEMENTS = 4096
"""Of a program of 4 warps: 32 a thread of each tensor, in four loads of 16 bytes."""


@triton.jit(do_not_specialize=["heads", "queries"])
def join_kernel(
    out, lse, other, other_lse, out_batch, out_head, out_row, other_batch, other_head, other_row, heads, queries,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row_blocks = tl.cdiv(queries, ROWS)
    # Heads of a token lie side by side: programs that follow one another read on.
    head, place = (tl.program_id(0) % heads).to(tl.int64), tl.program_id(0) // heads
    block, batch = place % row_blocks, (place // row_blocks).to(tl.int64)
    rows, columns = block * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    inside = rows < queries
    logs = (batch * heads + head) * queries + rows
    share = tl.load(lse + logs, mask=inside, other=0.0) - tl.load(other_lse + logs, mask=inside, other=0.0)
    share = 1.0 / (1.0 + tl.exp(share))
    first = block.to(tl.int64) * ROWS
    steps, within = tl.arange(0, ROWS), inside[:, None]
    mine = out + batch * out_batch + head * out_head + first * out_row + steps[:, None] * out_row + columns[None, :]
    theirs = other + batch * other_batch + head * other_head + first * other_row
    theirs += steps[:, None] * other_row + columns[None, :]
    before = tl.load(mine, mask=within, other=0.0).to(tl.float32)
    joined = before + share[:, None] * (tl.load(theirs, mask=within, other=0.0).to(tl.float32) - before)
    tl.store(mine, held(joined, out.dtype.element_ty), mask=within)


def join(out: torch.Tensor, lse: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor) -> torch.Tensor:
    """`out` and `other` [B, H, S, D] with the logs [B, H, S] of their sums, written to `out`.

    Raises InvalidSetting for tensors that `supports_elementwise` refuses, and for widths that are no power of two.
    """
    require(supports_elementwise(out, other))
    batch, heads, queries, width = out.shape
    logs = lse.contiguous(), other_lse.contiguous()
    if other.shape != out.shape or width & (width - 1) or any(one.shape != out.shape[:3] for one in logs):
        raise InvalidSetting(
            f"two attentions of one shape, of heads whose width is a power of two, and a log for each row are joined: "
            f"{tuple(out.shape)} and {tuple(other.shape)} with {tuple(lse.shape)} and {tuple(other_lse.shape)} are not."
        )
    rows = max(1, ELEMENTS // width)
    if out.numel():
        with on_device(out):
            join_kernel[(triton.cdiv(queries, rows) * heads * batch,)](
                out, logs[0], other, logs[1], *out.stride()[:3], *other.stride()[:3], heads, queries, ROWS=rows,
                WIDTH=width, num_warps=4,
            )  # fmt: skip
    return out
