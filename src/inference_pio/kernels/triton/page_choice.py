"""Which pages of a cache one new token reads: estimate by page, smallest set that holds a share, list; two launches.

The plain truth is `kernels.page_choice`. Many programs score pages; then as many rank a tile of pages each, by counting
what comes before them, and what that holds. Shares are whole numbers, so that their sums are exact whoever takes them. The
length is read on the device: one graph serves all.
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
from inference_pio.kernels.triton.launch import (
    MOST_BLOCKS,
    PAGE,
    PAGES_RANKED,
    PAGES_RANKED_AMONG,
    PAGES_SCORED,
    on_device,
    ranking_warps,
)
from inference_pio.kernels.triton.overlap import let_others_begin, may_overlap, overlapping, wait_for_others
from inference_pio.kernels.triton.page_summary import summed_up
from inference_pio.kernels.triton.support import require, supports_decode

LOG2_E = tl.constexpr(1.4426950408889634)
UNIT = tl.constexpr(float(2**30))
"""Shares of the attention are told in so many parts: all of it fits into 32 bits."""
MORE_THAN_ALL = tl.constexpr(float(2**30 + 128))
ALL = tl.constexpr(2**30)
HIDDEN = tl.constexpr(-1.0e30)


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


@triton.jit
def found_scores(scores, row, members, page, length, seen_from, used, pages, GROUP: tl.constexpr,
                 PAGE_SIZE: tl.constexpr):  # fmt: skip
    """The scores of some pages for the query heads of one key head, [members, pages], a page's tokens counted in;
    hidden ones and members that are none weigh nothing."""
    tokens = tl.minimum(length - page * PAGE_SIZE, PAGE_SIZE) - tl.maximum(seen_from - page * PAGE_SIZE, 0)
    visible = (members < GROUP)[:, None] & ((page < used) & (tokens > 0))[None, :]
    places = scores + (row * GROUP + members[:, None]) * pages + page[None, :]
    found = tl.load(places, mask=visible, other=0.0, cache_modifier=".cg")
    return tl.where(visible, found + tl.log2(tl.maximum(tokens, 1).to(tl.float32))[None, :], HIDDEN)


@triton.jit
def in_units(found, members, peak, scale, page, length, seen_from, used, until, sinks, local, GROUP: tl.constexpr,
             PAGE_SIZE: tl.constexpr):  # fmt: skip
    """The share of each page, the mean over the query heads, in whole parts of `UNIT`; and what it is ranked by: `ALL`
    where it is always kept, -1 where it is not seen. Pages from `used` to `until`, to be written yet, are kept."""
    parts = (tl.exp2(found - peak[:, None]) * scale[:, None]).to(tl.int32)
    units = tl.sum(tl.where((members < GROUP)[:, None], parts, 0), 0)
    first = seen_from // PAGE_SIZE
    visible = (page >= first) & (page < until) & (length > seen_from)
    fixed = visible & ((page < first + sinks) | (page >= used - local))
    return units, tl.where(fixed, ALL, tl.where(visible, tl.minimum(units, ALL - 1), -1))


@triton.jit
def outranking(units, ranked, page, mine, mine_ranked):
    """How many of the pages `page` come before each of the pages `mine`, equal ones from the front, and what they
    hold."""
    before = (ranked[None, :] > mine_ranked[:, None]) | (
        (ranked[None, :] == mine_ranked[:, None]) & (page[None, :] < mine[:, None])
    )
    return tl.sum(before.to(tl.int32), 1), tl.sum(tl.where(before, units[None, :], 0), 1)


@triton.jit(
    do_not_specialize=["length_step", "pages", "list_length", "sinks", "local", "most", "ahead"],
    do_not_specialize_on_alignment=["lengths", "starts", "shares", "counts", "indices"],
)
def page_list_kernel(
    scores, lengths, starts, shares, counts, indices, length_step, pages, list_length, sinks, local, most, ahead,
    GROUP: tl.constexpr, MEMBERS: tl.constexpr, PAGE_SIZE: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    HAS_STARTS: tl.constexpr, DEPENDENT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """The smallest set of pages that holds a share: each program ranks a tile of pages among all, and lists those of
    them that are kept at the place of their rank."""
    tile, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if DEPENDENT:
        wait_for_others(INTERPRETED)
    length = tl.load(lengths + batch * length_step)
    share = tl.load(shares + head)
    seen_from = 0
    if HAS_STARTS:
        seen_from = tl.maximum(tl.load(starts + batch), 0)
    used = tl.minimum(tl.cdiv(length, PAGE_SIZE), pages)
    until = tl.minimum(tl.cdiv(length + ahead, PAGE_SIZE), pages)
    pair = batch.to(tl.int64) * tl.num_programs(1) + head
    seen = tl.where(length > seen_from, until - seen_from // PAGE_SIZE, 0)
    if (seen == 0) & (tile == 0):
        tl.store(counts + pair, 0)
    if (seen == 0) | (tile * TILE >= until):
        return
    members, page, mine = tl.arange(0, MEMBERS), tl.arange(0, CHUNK), tile * TILE + tl.arange(0, TILE)
    own = found_scores(scores, pair, members, mine, length, seen_from, used, pages, GROUP, PAGE_SIZE)
    found = found_scores(scores, pair, members, page, length, seen_from, used, pages, GROUP, PAGE_SIZE)
    peak = tl.max(found, 1)
    total = tl.sum(tl.exp2(found - peak[:, None]), 1)
    for first in tl.range(CHUNK, used, CHUNK):
        more = found_scores(scores, pair, members, first + page, length, seen_from, used, pages, GROUP, PAGE_SIZE)
        higher = tl.maximum(peak, tl.max(more, 1))
        total = total * tl.exp2(peak - higher) + tl.sum(tl.exp2(more - higher[:, None]), 1)
        peak = higher
    scale = (UNIT / GROUP) / total
    held, ranked = in_units(
        own, members, peak, scale, mine, length, seen_from, used, until, sinks, local, GROUP, PAGE_SIZE
    )  # fmt: skip
    units, others = in_units(
        found, members, peak, scale, page, length, seen_from, used, until, sinks, local, GROUP, PAGE_SIZE
    )  # fmt: skip
    rank, mass = outranking(units, others, page, mine, ranked)
    fixed = tl.sum((others == ALL).to(tl.int32), 0)
    for first in tl.range(CHUNK, until, CHUNK):
        more = found_scores(scores, pair, members, first + page, length, seen_from, used, pages, GROUP, PAGE_SIZE)
        units, others = in_units(
            more, members, peak, scale, first + page, length, seen_from, used, until, sinks, local, GROUP, PAGE_SIZE
        )  # fmt: skip
        in_front, before = outranking(units, others, first + page, mine, ranked)
        rank += in_front
        mass += before
        fixed += tl.sum((others == ALL).to(tl.int32), 0)
    wanted = tl.minimum(tl.ceil(share * UNIT), MORE_THAN_ALL).to(tl.int32)
    kept = (ranked == ALL) | ((ranked >= 0) & (mass < wanted) & (rank < most))
    reached = (mass + held >= wanted) | (rank + 1 >= most)
    last = kept & ((rank + 1 == seen) | ((rank + 1 >= fixed) & reached))  # of all that are kept, one program's alone
    none = (rank == 0) & (ranked >= 0) & (kept == 0)
    tl.store(indices + pair * list_length + rank, mine, mask=kept)
    tl.store(counts + pair + tl.zeros([TILE], tl.int32), tl.where(kept, rank + 1, 0), mask=last | none)


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
    `ahead`: so many tokens more read by the same list, which holds the pages that they will be written to; and the
    summary may not know as many before the last one. `dependent`: the first launch may begin before the one in front of it has ended, as the second always may. Nothing
    is allocated where `lists` and `scratch` are given; nothing waits for the device.
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
    lists = lists or empty_lists(batch, key_heads, capped, query.device)
    if lists.indices.shape[-1] < capped or (scratch and scratch.scores.shape != (batch, heads, pages)):
        raise InvalidSetting(
            f"lists of {lists.indices.shape[-1]} pages, or what stands beside them, are not for up to {capped} of "
            f"{pages} pages: make them by empty_lists and PageScratch.of."
        )
    scratch = scratch or PageScratch.of(batch, heads, pages, query.device)
    group, chunk = heads // key_heads, min(max(16, triton.next_power_of_2(pages)), PAGES_RANKED_AMONG)
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
        page_list_kernel[(triton.cdiv(pages, PAGES_RANKED), key_heads, batch)](
            scratch.scores, lengths, starts, shares, lists.counts, lists.indices, int(lengths.numel() > 1), pages,
            lists.indices.shape[-1], sinks, local, capped, ahead, MEMBERS=triton.next_power_of_2(group),
            TILE=PAGES_RANKED, CHUNK=chunk, num_warps=ranking_warps(chunk), **common, **overlapping(overlaps),
        )  # fmt: skip
    return lists


def empty_lists(batch: int, key_heads: int, most: int, device: torch.device) -> PageList:
    """Room for lists of up to so many pages."""
    counts = torch.zeros(batch, key_heads, dtype=torch.int32, device=device)
    return PageList(counts, torch.zeros(batch, key_heads, most, dtype=torch.int32, device=device))
