"""Which pages of a cache one new token reads, in one launch: estimate by page, smallest set that holds a share, list.

The plain truth is `kernels.block_choice.Ranked` over `kernels.page_estimate.estimate_pages`. Many programs score pages;
the last one of each key head, told by a counter, chooses. The length is read on the device: one graph serves all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

import triton
import triton.language as tl
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.page_estimate import SCORERS
from inference_pio.kernels.page_list import PageList
from inference_pio.kernels.page_summary import PageSummary
from inference_pio.kernels.triton.block_choice import smallest_set
from inference_pio.kernels.triton.launch import MOST_BLOCKS, PAGE, PAGES_OF_A_PROGRAM, on_device, page_choice_warps
from inference_pio.kernels.triton.support import require, supports_decode

LOG2_E = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True)
class PageScratch:
    """What programs leave for the last of them: scores float32 [B, H, pages], and how many have come, int32
    [B, key heads], which is zero between launches."""

    scores: torch.Tensor
    arrived: torch.Tensor

    @classmethod
    def of(cls, batch: int, heads: int, key_heads: int, pages: int, device: torch.device) -> PageScratch:
        arrived = torch.zeros(batch, key_heads, dtype=torch.int32, device=device)
        return cls(torch.empty(batch, heads, pages, device=device), arrived)


@triton.jit(
    do_not_specialize=["length_step", "pages", "list_length", "sinks", "local", "most"],
    do_not_specialize_on_alignment=["lengths", "starts", "shares", "arrived", "counts", "indices"],
)
def page_choice_kernel(
    query, least, largest, mean, scores, arrived, lengths, starts, shares, counts, indices,
    query_batch, query_head, length_step, pages, list_length, sinks, local, most, scale,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, PAGE_SIZE: tl.constexpr, TILE: tl.constexpr,
    PAGES: tl.constexpr, MEANS: tl.constexpr, BOUNDS: tl.constexpr, CAPPED: tl.constexpr, HAS_STARTS: tl.constexpr,
    PIVOTS: tl.constexpr,
):  # fmt: skip
    tile, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + batch * length_step)
    used = tl.minimum(tl.cdiv(length, PAGE_SIZE), pages)
    tiles = tl.maximum(tl.cdiv(used, TILE), 1)
    if tile >= tiles:
        return

    # What each page weighs for each query head.
    pair = batch.to(tl.int64) * tl.num_programs(1) + head
    column, page = tl.arange(0, WIDTH), tile * TILE + tl.arange(0, TILE)
    offsets = pair * pages * WIDTH + page[:, None] * WIDTH + column[None, :]
    held = (page < used)[:, None]
    if MEANS:
        means = tl.load(mean + offsets, mask=held, other=0.0)
    if BOUNDS:
        above = tl.load(largest + offsets, mask=held, other=0.0).to(tl.float32)
        below = tl.load(least + offsets, mask=held, other=0.0).to(tl.float32)
    for member in tl.range(0, GROUP):
        mine = tl.load(query + batch * query_batch + (head * GROUP + member) * query_head + column).to(tl.float32)
        mine = (mine * (scale * LOG2_E))[None, :]
        if BOUNDS:
            products = mine * tl.where(mine > 0.0, above, below)
            if MEANS:
                products = 0.5 * (products + mine * means)
        else:
            products = mine * means
        tl.store(scores + (pair * GROUP + member) * pages + page, tl.sum(products, 1), mask=page < used)

    # The last program to come chooses. What the others stored is seen after the counter, past the first cache.
    tl.debug_barrier()
    if tl.atomic_add(arrived + pair, 1, sem="acq_rel") != tiles - 1:
        return
    tl.store(arrived + pair, 0)
    seen_from = 0
    if HAS_STARTS:
        seen_from = tl.maximum(tl.load(starts + batch), 0)
    number = tl.arange(0, PAGES)
    first = number * PAGE_SIZE
    tokens = tl.minimum(length - first, PAGE_SIZE) - tl.maximum(seen_from - first, 0)
    visible = (number < used) & (first + PAGE_SIZE > seen_from)
    weight = tl.log2(tl.maximum(tokens, 1).to(tl.float32))
    estimate = tl.zeros([PAGES], tl.float32)
    for member in tl.range(0, GROUP):
        mine = tl.load(
            scores + (pair * GROUP + member) * pages + number, mask=number < used, other=0.0, cache_modifier=".cg"
        )
        mine = tl.where(visible & (tokens > 0), mine + weight, float("-inf"))
        shares_of_head = tl.exp2(mine - tl.maximum(tl.max(mine, 0), -1.0e30))
        estimate += shares_of_head / (tl.maximum(tl.sum(shares_of_head, 0), 1.0e-30) * GROUP)
    sink = (number >= seen_from // PAGE_SIZE) & (number < seen_from // PAGE_SIZE + sinks)
    fixed = visible & (sink | (number >= used - local))
    share = tl.load(shares + head)
    kept = smallest_set(estimate, fixed, visible & (fixed == 0), share, most, CAPPED, PIVOTS).to(tl.int32)
    tl.store(counts + pair, tl.sum(kept, 0))
    tl.store(indices + pair * list_length + tl.cumsum(kept, 0) - 1, number, mask=kept != 0)


def choose_pages(
    query: torch.Tensor, summary: PageSummary, lengths: torch.Tensor, shares: torch.Tensor, *,
    starts: torch.Tensor | None = None, scale: float | None = None, scorer: str = "mean", sinks: int = 1,
    local: int = 2, budget: int | None = None, lists: PageList | None = None, scratch: PageScratch | None = None,
) -> PageList:  # fmt: skip
    """For each key head (`shares` float32 [key heads]) the pages that hold its share of the estimate for `query`
    [B, H, D], beside the first `sinks` and the last `local` ones, and at most `budget` pages (never fewer than those).

    `lengths` and `starts` are int32 on the device, as `decode_attention` takes them. Nothing is allocated where `lists`
    and `scratch` are given; nothing waits for the device.
    """
    keys = summary.minimum.transpose(1, 2)
    require(supports_decode(query, keys, keys, lengths, starts))
    batch, heads, width = query.shape
    key_heads, pages = summary.mean.shape[1:3]
    if pages > MOST_BLOCKS or scorer not in SCORERS:
        raise InvalidSetting(
            f"the kernel chooses among up to {MOST_BLOCKS} pages by one of {', '.join(SCORERS)}, and not among {pages} "
            f"by {scorer!r}: keep a shorter cache, or take torch's way."
        )
    if not all(one.is_contiguous() for one in (summary.minimum, summary.maximum, summary.mean)):
        raise InvalidSetting("the kernel reads summaries that are contiguous: make them by PageSummary.zeros.")
    capped = pages if budget is None else min(max(budget, sinks + local), pages)
    lists = lists or empty_lists(batch, key_heads, capped, query.device)
    scratch = scratch or PageScratch.of(batch, heads, key_heads, pages, query.device)
    group, padded = heads // key_heads, max(16, triton.next_power_of_2(pages))
    tile = PAGES_OF_A_PROGRAM * 128 // max(width, 128)
    with on_device(query):
        page_choice_kernel[(triton.cdiv(pages, tile), key_heads, batch)](
            query, summary.minimum, summary.maximum, summary.mean, scratch.scores, scratch.arrived, lengths, starts,
            shares, lists.counts, lists.indices, query.stride(0), query.stride(1), int(lengths.numel() > 1), pages,
            lists.indices.shape[-1], sinks, local, capped, width**-0.5 if scale is None else scale,
            GROUP=group, WIDTH=width, PAGE_SIZE=PAGE,
            TILE=tile, PAGES=padded, MEANS=scorer != "bounds", BOUNDS=scorer != "mean",
            CAPPED=budget is not None, HAS_STARTS=starts is not None,
            PIVOTS=4 if padded <= 1024 else 1,  # more would not fit in registers
            num_warps=page_choice_warps(padded),
        )  # fmt: skip
    return lists


def empty_lists(batch: int, key_heads: int, most: int, device: torch.device) -> PageList:
    """Room for lists of up to so many pages."""
    counts = torch.zeros(batch, key_heads, dtype=torch.int32, device=device)
    return PageList(counts, torch.zeros(batch, key_heads, most, dtype=torch.int32, device=device))
