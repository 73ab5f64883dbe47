"""Which pages of a cache one new token reads: estimate by page, smallest set that holds a share, list; two launches.

The plain truth is `kernels.page_choice`. The length is read on the device: one graph serves all.
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
from inference_pio.kernels.triton.attention_support import supports_decode
from inference_pio.kernels.triton.launch import (
    MOST_BLOCKS,
    MOST_RANKED,
    PAGE,
    PAGES_RANKED,
    PAGES_SCORED,
    choice_warps,
    on_device,
    ranking_warps,
)
from inference_pio.kernels.triton.overlap import let_others_begin, may_overlap, overlapping, wait_for_others
from inference_pio.kernels.triton.page_ranks import page_list_kernel, page_rank_kernel
from inference_pio.kernels.triton.page_summary import summed_up
from inference_pio.kernels.triton.support import require

LOG2_E = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True)
class PageScratch:
    """What the first launch leaves for the second: scores float32 [B, H, pages]."""

    scores: torch.Tensor

    @classmethod
    def of(cls, batch: int, heads: int, pages: int, device: torch.device) -> PageScratch:
        return cls(torch.empty(batch, heads, pages, device=device))


@triton.jit(
    do_not_specialize=["length_step", "pages", "ahead"],
    do_not_specialize_on_alignment=["lengths", "starts"],
)
def page_scores_kernel(
    query, least, largest, mean, keys, scores, lengths, starts,
    query_batch, query_head, key_batch, key_token, key_head, length_step, pages, ahead, scale,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, PAGE_SIZE: tl.constexpr, TILE: tl.constexpr, MEANS: tl.constexpr,
    BOUNDS: tl.constexpr, HAS_STARTS: tl.constexpr, WRITTEN: tl.constexpr, LEADS: tl.constexpr,
    DEPENDENT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    tile, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if LEADS:
        let_others_begin(INTERPRETED)
    if DEPENDENT:
        wait_for_others(INTERPRETED)
    length = tl.load(lengths + batch * length_step)
    used = tl.minimum(tl.cdiv(length, PAGE_SIZE), pages)
    if tile * TILE >= used:
        return
    pair = batch.to(tl.int64) * tl.num_programs(1) + head
    column, page = tl.arange(0, WIDTH), tile * TILE + tl.arange(0, TILE)
    rows = pair * pages * WIDTH
    offsets = rows + page[:, None] * WIDTH + column[None, :]
    held = (page < used)[:, None]
    if MEANS:
        means = tl.load(mean + offsets, mask=held, other=0.0)
    if BOUNDS:
        above = tl.load(largest + offsets, mask=held, other=0.0).to(tl.float32)
        below = tl.load(least + offsets, mask=held, other=0.0).to(tl.float32)
    if WRITTEN:  # pages of the last tokens are summed up on the way
        base = keys + batch.to(tl.int64) * key_batch + head.to(tl.int64) * key_head
        oldest = tl.maximum(length - 1 - ahead, 0) // PAGE_SIZE
        for fresh in tl.range(tl.maximum(oldest, tile * TILE), tl.minimum(used, (tile + 1) * TILE)):
            begin = fresh * PAGE_SIZE
            if HAS_STARTS:
                begin = tl.maximum(begin, tl.load(starts + batch))
            low, high, average = summed_up(base, begin, length, fresh, column, key_token, WIDTH, PAGE_SIZE)
            place = rows + fresh * WIDTH + column
            tl.store(least + place, low.to(least.dtype.element_ty))
            tl.store(largest + place, high.to(largest.dtype.element_ty))
            tl.store(mean + place, average)
            here = (page == fresh)[:, None]
            if MEANS:
                means = tl.where(here, average[None, :], means)
            if BOUNDS:
                above = tl.where(here, high[None, :], above)
                below = tl.where(here, low[None, :], below)
    for member in tl.range(0, GROUP):
        asked = tl.load(query + batch * query_batch + (head * GROUP + member) * query_head + column).to(tl.float32)
        asked = (asked * (scale * LOG2_E))[None, :]
        if BOUNDS:
            products = asked * tl.where(asked > 0.0, above, below)
            if MEANS:
                products = 0.5 * (products + asked * means)
        else:
            products = asked * means
        tl.store(scores + (pair * GROUP + member) * pages + page, tl.sum(products, 1), mask=page < used)


def choose_pages(
    query: torch.Tensor, summary: PageSummary, lengths: torch.Tensor, shares: torch.Tensor, *,
    starts: torch.Tensor | None = None, scale: float | None = None, scorer: str = "mean", sinks: int = 1,
    local: int = 2, budget: int | None = None, lists: PageList | None = None, scratch: PageScratch | None = None,
    written: torch.Tensor | None = None, ahead: int = 0, dependent: bool = False,
) -> PageList:  # fmt: skip
    """For each key head (`shares` float32 [key heads]) the pages that hold its share of the estimate for `query`
    [B, H, D], beside the first `sinks` and the last `local` ones, and at most `budget` pages (never fewer than those).

    `lengths` and `starts` are int32 on the device, as `decode_attention` takes them. `written`: a cache
    [B, capacity, key heads, D] whose last token the summary does not know yet; that of its page is renewed on the way.
    `ahead`: so many tokens more read by the same list, which holds the pages that they will be written to; and as many
    before the last one the summary need not know. `dependent`: the first launch may begin before the one in front of it
    has ended, as the second always may. Nothing is allocated where `lists` and `scratch` are given; nothing waits for
    the device.
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
    if written is not None:
        require(supports_decode(query, written, written, lengths, starts))
    always = sinks + local + -(-ahead // PAGE)
    capped = pages if budget is None else min(max(budget, always), pages)
    lists = lists or PageList.empty(batch, key_heads, capped, query.device)
    if lists.indices.shape[-1] < capped or (scratch and scratch.scores.shape != (batch, heads, pages)):
        raise InvalidSetting(
            f"lists of {lists.indices.shape[-1]} pages, or what stands beside them, are not for up to {capped} of "
            f"{pages} pages: make them by PageList.empty and PageScratch.of."
        )
    scratch = scratch or PageScratch.of(batch, heads, pages, query.device)
    group, padded = heads // key_heads, max(16, triton.next_power_of_2(pages))
    tile = max(1, PAGES_SCORED * 128 // max(width, 128))
    steps = (0, 0, 0) if written is None else written.stride()[:3]
    common = {"GROUP": group, "PAGE_SIZE": PAGE, "HAS_STARTS": starts is not None}
    overlaps = may_overlap(query.device)
    with on_device(query):
        page_scores_kernel[(triton.cdiv(pages, tile), key_heads, batch)](
            query, summary.minimum, summary.maximum, summary.mean, written, scratch.scores, lengths, starts,
            query.stride(0), query.stride(1), *steps, int(lengths.numel() > 1), pages, ahead,
            width**-0.5 if scale is None else scale, WIDTH=width, TILE=tile, MEANS=scorer != "bounds",
            BOUNDS=scorer != "mean", WRITTEN=written is not None, LEADS=overlaps, num_warps=4 if width <= 128 else 8,
            **common, **overlapping(dependent),
        )  # fmt: skip
        given = (
            scratch.scores, lengths, starts, shares, lists.counts, lists.indices, int(lengths.numel() > 1), pages,
            lists.indices.shape[-1], sinks, local, capped, ahead,
        )  # fmt: skip
        common |= {"MEMBERS": triton.next_power_of_2(group), "PAGES": padded, **overlapping(overlaps)}
        if padded <= MOST_RANKED:
            page_rank_kernel[(triton.cdiv(pages, PAGES_RANKED), key_heads, batch)](
                *given, TILE=PAGES_RANKED, num_warps=ranking_warps(padded), **common
            )
        else:
            page_list_kernel[(key_heads, batch)](*given, CUTS=4, num_warps=choice_warps(padded), **common)
    return lists
