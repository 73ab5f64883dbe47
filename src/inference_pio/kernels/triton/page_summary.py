"""Least, largest and mean key of the pages that a write has touched; where it ended is read on the device.

One recorded graph serves every length. The plain truth is `kernels.page_summary.naive_page_summary`.
"""

from __future__ import annotations

import torch

import triton
import triton.language as tl
from inference_pio.kernels.page_summary import PageSummary
from inference_pio.kernels.triton.attention_support import supports_page_summary
from inference_pio.kernels.triton.launch import PAGE, on_device
from inference_pio.kernels.triton.support import require

COLUMNS = 64
"""Columns of a page that one program reads."""


@triton.jit
def summed_up(base, begin, end, page, columns, token_step, WIDTH: tl.constexpr, PAGE_SIZE: tl.constexpr):
    """Least, largest and mean of some columns of one page's keys from token `begin` to `end`; zeros of none."""
    places = page * PAGE_SIZE + tl.arange(0, PAGE_SIZE)
    seen = ((places >= begin) & (places < end))[:, None] & (columns < WIDTH)[None, :]
    held = tl.load(base + places.to(tl.int64)[:, None] * token_step + columns[None, :], mask=seen, other=0.0)
    held = held.to(tl.float32)
    count = tl.maximum(tl.minimum(end, (page + 1) * PAGE_SIZE) - begin, 0)
    least = tl.where(count > 0, tl.min(tl.where(seen, held, float("inf")), 0), 0.0)
    largest = tl.where(count > 0, tl.max(tl.where(seen, held, float("-inf")), 0), 0.0)
    return least, largest, tl.sum(held, 0) / tl.maximum(count, 1)


@triton.jit(
    do_not_specialize=["added", "pages", "heads"],
    do_not_specialize_on_alignment=["length", "starts"],
)
def page_summary_kernel(
    keys, minimum, maximum, mean, length, starts, batch_step, token_step, head_step, added, pages, heads,
    WIDTH: tl.constexpr, PAGE_SIZE: tl.constexpr, BLOCK: tl.constexpr, HAS_STARTS: tl.constexpr,
):  # fmt: skip
    batch, head, part = tl.program_id(2), tl.program_id(1) % heads, tl.program_id(1) // heads
    end = tl.load(length)
    page = tl.maximum(end - added, 0) // PAGE_SIZE + tl.program_id(0)
    if page * PAGE_SIZE >= end:
        return
    begin = page * PAGE_SIZE
    if HAS_STARTS:
        begin = tl.maximum(begin, tl.load(starts + batch))
    columns = part * BLOCK + tl.arange(0, BLOCK)
    base = keys + batch.to(tl.int64) * batch_step + head.to(tl.int64) * head_step
    least, largest, average = summed_up(base, begin, end, page, columns, token_step, WIDTH, PAGE_SIZE)
    row = ((batch * heads + head).to(tl.int64) * pages + page) * WIDTH
    inside = columns < WIDTH
    tl.store(minimum + row + columns, least.to(minimum.dtype.element_ty), mask=inside)
    tl.store(maximum + row + columns, largest.to(maximum.dtype.element_ty), mask=inside)
    tl.store(mean + row + columns, average, mask=inside)


def update_page_summary(
    summary: PageSummary,
    keys: torch.Tensor,
    length: torch.Tensor,
    added: int,
    starts: torch.Tensor | None = None,
) -> None:
    """Follow, in place, a cache [B, capacity, key heads, D] to which `added` tokens were written before `length`.

    `length` int32 [1] and `starts` int32 [B] are read on the device; nothing is allocated. Raises InvalidSetting for
    tensors that `supports_page_summary` refuses.
    """
    require(supports_page_summary(summary, keys, length, starts))
    batch, _, heads, width = keys.shape
    pages = summary.mean.shape[2]
    touched = min((added + PAGE - 2) // PAGE + 1, pages)  # one token touches one page; two may touch two
    if added == 0:
        return
    block = min(COLUMNS, triton.next_power_of_2(width))
    with on_device(keys):
        page_summary_kernel[(touched, heads * triton.cdiv(width, block), batch)](
            keys, summary.minimum, summary.maximum, summary.mean, length, starts, keys.stride(0), keys.stride(1),
            keys.stride(2), added, pages, heads, WIDTH=width, PAGE_SIZE=PAGE, BLOCK=block,
            HAS_STARTS=starts is not None, num_warps=4,
        )  # fmt: skip
