"""From scores of pages to lists: of each key head the smallest set of pages that holds a share of the estimate.

A few hundred pages are ranked by many programs, each of which counts what comes before its own. Of more, one program
for each key head finds the least share that is kept by halving what it may be. Shares are whole numbers: their sums are
exact, whoever takes them.
"""

from __future__ import annotations

import triton
import triton.language as tl
from inference_pio.kernels.triton.overlap import wait_for_others

UNIT = tl.constexpr(float(2**30))
"""Shares of the attention are told in so many parts: all of it fits into 32 bits."""
MORE_THAN_ALL = tl.constexpr(float(2**30 + 128))
ALL = tl.constexpr(2**30)
HIDDEN = tl.constexpr(-1.0e30)


@triton.jit
def extent(lengths, starts, batch, length_step, pages, ahead, PAGE_SIZE: tl.constexpr, HAS_STARTS: tl.constexpr):
    """Of one row: its tokens, the first that is seen, the pages that are used and those that will be, and how many of
    these may be listed."""
    length = tl.load(lengths + batch * length_step)
    seen_from = 0
    if HAS_STARTS:
        seen_from = tl.maximum(tl.load(starts + batch), 0)
    used = tl.minimum(tl.cdiv(length, PAGE_SIZE), pages)
    until = tl.minimum(tl.cdiv(length + ahead, PAGE_SIZE), pages)
    return length, seen_from, used, until, tl.where(length > seen_from, until - seen_from // PAGE_SIZE, 0)


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


@triton.jit
def in_whole_units(share):
    """A share that is asked for, in parts of `UNIT`."""
    return tl.minimum(tl.ceil(share * UNIT), MORE_THAN_ALL).to(tl.int32)


@triton.jit
def smallest_set(units, ranked, seen, wanted, most, CUTS: tl.constexpr):
    """Those that are always kept, and of the other ones that are seen the largest that bring the units of all to
    `wanted`; never more than `most` together, all if they do not reach it. Equal ones are taken from the front. Told as
    whether each is kept, how many kept ones stand before it, and how many there are. `seen`: how many there may be.

    Of all with at least `low` units there are enough, of those with at least `low + width` there are not; each round
    holds `CUTS` bounds against them, until one is left between."""
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
    certain = (ranked == ALL) | (ranked >= low + width)
    level = (ranked >= low) & (ranked < low + width) & (ranked < ALL)
    missing = tl.where(low > 0, (wanted - over_mass - 1) // tl.maximum(low, 1) + 1, most)
    missing = tl.maximum(tl.minimum(missing, most - over_count), 0)
    both = tl.cumsum(certain.to(tl.int32) + (level.to(tl.int32) << 16), 0)
    among = both >> 16
    kept = certain | (level & (among <= missing))
    place = (both & 0xFFFF) + tl.minimum(among, missing) - 1
    return kept, place, over_count + tl.minimum(low_count - over_count, missing)


@triton.jit(
    do_not_specialize=["length_step", "pages", "list_length", "sinks", "local", "most", "ahead"],
    do_not_specialize_on_alignment=["lengths", "starts", "shares", "counts", "indices"],
)
def page_list_kernel(
    scores, lengths, starts, shares, counts, indices, length_step, pages, list_length, sinks, local, most, ahead,
    GROUP: tl.constexpr, MEMBERS: tl.constexpr, PAGE_SIZE: tl.constexpr, PAGES: tl.constexpr, CUTS: tl.constexpr,
    HAS_STARTS: tl.constexpr, DEPENDENT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """By one program for each key head."""
    head, batch = tl.program_id(0), tl.program_id(1)
    if DEPENDENT:
        wait_for_others(INTERPRETED)
    share = tl.load(shares + head)
    length, seen_from, used, until, seen = extent(
        lengths, starts, batch, length_step, pages, ahead, PAGE_SIZE, HAS_STARTS
    )  # fmt: skip
    pair = batch.to(tl.int64) * tl.num_programs(0) + head
    members, page = tl.arange(0, MEMBERS), tl.arange(0, PAGES)
    found = found_scores(scores, pair, members, page, length, seen_from, used, pages, GROUP, PAGE_SIZE)
    peak = tl.max(found, 1)
    scale = (UNIT / GROUP) / tl.sum(tl.exp2(found - peak[:, None]), 1)
    units, ranked = in_units(
        found, members, peak, scale, page, length, seen_from, used, until, sinks, local, GROUP, PAGE_SIZE
    )  # fmt: skip
    kept, place, count = smallest_set(units, ranked, seen, in_whole_units(share), most, CUTS)
    tl.store(counts + pair, count)
    tl.store(indices + pair * list_length + place, page, mask=kept)


@triton.jit(
    do_not_specialize=["length_step", "pages", "list_length", "sinks", "local", "most", "ahead"],
    do_not_specialize_on_alignment=["lengths", "starts", "shares", "counts", "indices"],
)
def page_rank_kernel(
    scores, lengths, starts, shares, counts, indices, length_step, pages, list_length, sinks, local, most, ahead,
    GROUP: tl.constexpr, MEMBERS: tl.constexpr, PAGE_SIZE: tl.constexpr, PAGES: tl.constexpr, TILE: tl.constexpr,
    HAS_STARTS: tl.constexpr, DEPENDENT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """By many programs: each ranks a tile of pages among all, by counting what comes before them and what that holds,
    and lists those of them that are kept at the place of their rank."""
    tile, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if DEPENDENT:
        wait_for_others(INTERPRETED)
    share = tl.load(shares + head)
    length, seen_from, used, until, seen = extent(
        lengths, starts, batch, length_step, pages, ahead, PAGE_SIZE, HAS_STARTS
    )  # fmt: skip
    pair = batch.to(tl.int64) * tl.num_programs(1) + head
    if (seen == 0) & (tile == 0):
        tl.store(counts + pair, 0)
    if (seen == 0) | (tile * TILE >= until):
        return
    members, page, mine = tl.arange(0, MEMBERS), tl.arange(0, PAGES), tile * TILE + tl.arange(0, TILE)
    own = found_scores(scores, pair, members, mine, length, seen_from, used, pages, GROUP, PAGE_SIZE)
    found = found_scores(scores, pair, members, page, length, seen_from, used, pages, GROUP, PAGE_SIZE)
    peak = tl.max(found, 1)
    total = tl.sum(tl.exp2(found - peak[:, None]), 1)
    scale = (UNIT / GROUP) / total
    held, ranked = in_units(
        own, members, peak, scale, mine, length, seen_from, used, until, sinks, local, GROUP, PAGE_SIZE
    )  # fmt: skip
    units, others = in_units(
        found, members, peak, scale, page, length, seen_from, used, until, sinks, local, GROUP, PAGE_SIZE
    )  # fmt: skip
    rank, mass = outranking(units, others, page, mine, ranked)
    fixed = tl.sum((others == ALL).to(tl.int32), 0)
    wanted = in_whole_units(share)
    kept = (ranked == ALL) | ((ranked >= 0) & (mass < wanted) & (rank < most))
    reached = (mass + held >= wanted) | (rank + 1 >= most)
    last = kept & ((rank + 1 == seen) | ((rank + 1 >= fixed) & reached))  # of all that are kept, one program's alone
    none = (rank == 0) & (ranked >= 0) & (kept == 0)
    tl.store(indices + pair * list_length + rank, mine, mask=kept)
    tl.store(counts + pair + tl.zeros([TILE], tl.int32), tl.where(kept, rank + 1, 0), mask=last | none)
