"""Which pages of a cache one new token reads: estimate by page, smallest set that holds a share, list; two launches.

The plain truth is `kernels.block_choice.Ranked` over `kernels.page_estimate.estimate_pages`. Many programs score pages;
then one for each key head finds the least share that is kept by halving what it may be. Shares are whole numbers: their
sums are exact, and fast within a warp. The length is read on the device: one graph serves all.
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
    PAGES_SCORED,
    choice_warps,
    on_device,
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
    do_not_specialize=["length_step", "pages"],
    do_not_specialize_on_alignment=["lengths", "starts"],
)
def page_scores_kernel(
    query, least, largest, mean, keys, scores, lengths, starts,
    query_batch, query_head, key_batch, key_token, key_head, length_step, pages, scale,
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
    if WRITTEN:  # noqa: SIM102 (one of them is known when this is compiled)
        if (used - 1) // TILE == tile:  # the page that the last token was written to is summed up on the way
            begin = (used - 1) * PAGE_SIZE
            if HAS_STARTS:
                begin = tl.maximum(begin, tl.load(starts + batch))
            base = keys + batch.to(tl.int64) * key_batch + head.to(tl.int64) * key_head
            low, high, average = summed_up(base, begin, length, used - 1, column, key_token, WIDTH, PAGE_SIZE)
            place = rows + (used - 1) * WIDTH + column
            tl.store(least + place, low.to(least.dtype.element_ty))
            tl.store(largest + place, high.to(largest.dtype.element_ty))
            tl.store(mean + place, average)
            mine = (page == used - 1)[:, None]
            if MEANS:
                means = tl.where(mine, average[None, :], means)
            if BOUNDS:
                above = tl.where(mine, high[None, :], above)
                below = tl.where(mine, low[None, :], below)
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
def in_units(found, members, page, length, seen_from, used, GROUP: tl.constexpr, PAGE_SIZE: tl.constexpr):
    """The share of each page by the scores `found` [members, pages], the mean over the query heads, in whole parts of
    `UNIT`; and whether it is seen."""
    tokens = tl.minimum(length - page * PAGE_SIZE, PAGE_SIZE) - tl.maximum(seen_from - page * PAGE_SIZE, 0)
    visible = (page < used) & (tokens > 0)
    found += tl.log2(tl.maximum(tokens, 1).to(tl.float32))[None, :]
    found = tl.where(visible[None, :], found, HIDDEN)
    shares = tl.exp2(found - tl.max(found, 1)[:, None])
    shares = shares * ((UNIT / GROUP) / tl.sum(shares, 1)[:, None])
    return tl.sum(tl.where((members < GROUP)[:, None], shares.to(tl.int32), 0), 0), visible


@triton.jit
def smallest_set(units, fixed, free, seen, wanted, most, CUTS: tl.constexpr):
    """The `fixed` ones, and of the `free` ones the largest that bring the units of both to `wanted`; never more than
    `most` together, all if they do not reach it. Equal ones are taken from the front. Told as whether each is kept, how
    many kept ones stand before it, and how many there are. `seen`: how many are fixed or free.

    Of all with at least `low` units there are enough, of those with at least `low + width` there are not; each round
    holds `CUTS` bounds against them, until one is left between."""
    ranked = tl.where(fixed, ALL, tl.where(free, tl.minimum(units, ALL - 1), -1))
    low, width, over_mass, over_count, low_count = 0, ALL, 0, 0, seen
    number = tl.arange(0, CUTS)
    while (width > 1) & (low_count - over_count > 1):
        step = width // CUTS
        over = ranked[None, :] >= (low + (number + 1) * step)[:, None]
        masses, counts = tl.sum(tl.where(over, units[None, :], 0), 1), tl.sum(over.to(tl.int32), 1)
        enough = (masses >= wanted) | (counts >= most)
        reached = tl.sum(enough.to(tl.int32), 0)
        low += reached * step
        low_count = tl.minimum(low_count, tl.min(tl.where(enough, counts, ALL), 0))
        over_mass = tl.max(tl.where(enough, 0, masses), 0)
        over_count = tl.max(tl.where(enough, 0, counts), 0)
        if reached == CUTS:  # the fixed ones are enough
            over_count = low_count
        width = step
    certain = fixed | (ranked >= low + width)
    level = free & (ranked >= low) & (ranked < low + width)
    missing = tl.where(low > 0, (wanted - over_mass - 1) // tl.maximum(low, 1) + 1, most)
    missing = tl.maximum(tl.minimum(missing, most - over_count), 0)
    both = tl.cumsum(certain.to(tl.int32) + (level.to(tl.int32) << 16), 0)
    among = both >> 16
    kept = certain | (level & (among <= missing))
    place = (both & 0xFFFF) + tl.minimum(among, missing) - 1
    return kept, place, over_count + tl.minimum(low_count - over_count, missing)


@triton.jit
def choice(found, members, page, length, seen_from, used, share, sinks, local, most, GROUP: tl.constexpr,
           PAGE_SIZE: tl.constexpr, CUTS: tl.constexpr):  # fmt: skip
    """`smallest_set` of the pages of a key head, by the scores `found` [members, pages] of its query heads."""
    units, visible = in_units(found, members, page, length, seen_from, used, GROUP, PAGE_SIZE)
    first = seen_from // PAGE_SIZE
    fixed = visible & (((page >= first) & (page < first + sinks)) | (page >= used - local))
    wanted = tl.minimum(tl.ceil(share * UNIT), MORE_THAN_ALL).to(tl.int32)
    seen = tl.where(length > seen_from, used - first, 0)
    return smallest_set(units, fixed, visible & (fixed == 0), seen, wanted, most, CUTS)


@triton.jit(
    do_not_specialize=["length_step", "pages", "list_length", "sinks", "local", "most"],
    do_not_specialize_on_alignment=["lengths", "starts", "shares", "counts", "indices"],
)
def page_list_kernel(
    scores, lengths, starts, shares, counts, indices, length_step, pages, list_length, sinks, local, most,
    GROUP: tl.constexpr, MEMBERS: tl.constexpr, PAGE_SIZE: tl.constexpr, PAGES: tl.constexpr, CUTS: tl.constexpr,
    HAS_STARTS: tl.constexpr, DEPENDENT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(0), tl.program_id(1)
    if DEPENDENT:
        wait_for_others(INTERPRETED)
    length = tl.load(lengths + batch * length_step)
    share = tl.load(shares + head)
    seen_from = 0
    if HAS_STARTS:
        seen_from = tl.maximum(tl.load(starts + batch), 0)
    used = tl.minimum(tl.cdiv(length, PAGE_SIZE), pages)
    pair = batch.to(tl.int64) * tl.num_programs(0) + head
    page = tl.arange(0, PAGES)
    members = tl.arange(0, MEMBERS)
    found = tl.load(
        scores + (pair * GROUP + members[:, None]) * pages + page[None, :],
        mask=(members < GROUP)[:, None] & (page < used)[None, :], other=0.0, cache_modifier=".cg",
    )  # fmt: skip
    kept, place, count = choice(
        found, members, page, length, seen_from, used, share, sinks, local, most, GROUP, PAGE_SIZE, CUTS
    )  # fmt: skip
    tl.store(counts + pair, count)
    tl.store(indices + pair * list_length + place, page, mask=kept)


def choose_pages(
    query: torch.Tensor, summary: PageSummary, lengths: torch.Tensor, shares: torch.Tensor, *,
    starts: torch.Tensor | None = None, scale: float | None = None, scorer: str = "mean", sinks: int = 1,
    local: int = 2, budget: int | None = None, lists: PageList | None = None, scratch: PageScratch | None = None,
    written: torch.Tensor | None = None, dependent: bool = False,
) -> PageList:  # fmt: skip
    """For each key head (`shares` float32 [key heads]) the pages that hold its share of the estimate for `query`
    [B, H, D], beside the first `sinks` and the last `local` ones, and at most `budget` pages (never fewer than those).

    `lengths` and `starts` are int32 on the device, as `decode_attention` takes them. `written`: a cache
    [B, capacity, key heads, D] whose last token the summary does not know yet; that of its page is renewed on the way.
    `dependent`: the first launch may begin before the one in front of it has ended, as the second always may. Nothing
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
    capped = pages if budget is None else min(max(budget, sinks + local), pages)
    lists = lists or empty_lists(batch, key_heads, capped, query.device)
    if lists.indices.shape[-1] < capped or (scratch and scratch.scores.shape != (batch, heads, pages)):
        raise InvalidSetting(
            f"lists of {lists.indices.shape[-1]} pages, or what stands beside them, are not for up to {capped} of "
            f"{pages} pages: make them by empty_lists and PageScratch.of."
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
            query.stride(0), query.stride(1), *steps, int(lengths.numel() > 1), pages,
            width**-0.5 if scale is None else scale, WIDTH=width, TILE=tile, MEANS=scorer != "bounds",
            BOUNDS=scorer != "mean", WRITTEN=written is not None, LEADS=overlaps, num_warps=4 if width <= 128 else 8,
            **common, **overlapping(dependent),
        )  # fmt: skip
        page_list_kernel[(key_heads, batch)](
            scratch.scores, lengths, starts, shares, lists.counts, lists.indices, int(lengths.numel() > 1), pages,
            lists.indices.shape[-1], sinks, local, capped, MEMBERS=triton.next_power_of_2(group), PAGES=padded,
            CUTS=4, num_warps=choice_warps(padded), **common, **overlapping(overlaps),
        )  # fmt: skip
    return lists


def empty_lists(batch: int, key_heads: int, most: int, device: torch.device) -> PageList:
    """Room for lists of up to so many pages."""
    counts = torch.zeros(batch, key_heads, dtype=torch.int32, device=device)
    return PageList(counts, torch.zeros(batch, key_heads, most, dtype=torch.int32, device=device))
