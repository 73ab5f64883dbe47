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
def counted_in(found, page, length, seen_from, used, PAGE_SIZE: tl.constexpr):
    """The scores of pages, [members, pages], with the number of their tokens; those that hold none weigh nothing."""
    tokens = tl.minimum(length - page * PAGE_SIZE, PAGE_SIZE) - tl.maximum(seen_from - page * PAGE_SIZE, 0)
    found += tl.log2(tl.maximum(tokens, 1).to(tl.float32))[None, :]
    return tl.where(((page < used) & (tokens > 0))[None, :], found, HIDDEN)


@triton.jit
def in_units(found, members, peak, scale, GROUP: tl.constexpr):
    """The share of each page by its scores, the mean over the query heads, in whole parts of `UNIT`."""
    parts = (tl.exp2(found - peak) * scale).to(tl.int32)
    return tl.sum(tl.where((members < GROUP)[:, None], parts, 0), 0)


@triton.jit
def in_whole_units(share):
    """A share that is asked for, in parts of `UNIT`."""
    return tl.minimum(tl.ceil(share * UNIT), MORE_THAN_ALL).to(tl.int32)


@triton.jit
def ranks_by(units, fixed, free):
    """What pages are ranked by: those that are always kept before all, those that are not seen behind."""
    return tl.where(fixed, ALL, tl.where(free, tl.minimum(units, ALL - 1), -1))


@triton.jit
def page_kinds(page, length, seen_from, used, until, sinks, local, PAGE_SIZE: tl.constexpr):
    """Which pages are always kept, and which only for what they hold. Those from `used` to `until`, which tokens to
    come are written to, are kept."""
    first = seen_from // PAGE_SIZE
    visible = (page >= first) & (page < until) & (length > seen_from)
    fixed = visible & ((page < first + sinks) | (page >= used - local))
    return fixed, visible & (fixed == 0)


@triton.jit
def always_read(seen_from, used, until, sinks, local, PAGE_SIZE: tl.constexpr):
    """How many pages `page_kinds` tells to be always kept."""
    first = seen_from // PAGE_SIZE
    front, back = tl.minimum(first + sinks, until), tl.maximum(used - local, first)
    return front - first + until - back - tl.maximum(front - back, 0)


@triton.jit
def smallest_set(units, fixed, free, seen, wanted, most, CUTS: tl.constexpr):
    """The `fixed` ones, and of the `free` ones the largest that bring the units of both to `wanted`; never more than
    `most` together, all if they do not reach it. Equal ones are taken from the front. Told as whether each is kept, how
    many kept ones stand before it, and how many there are. `seen`: how many are fixed or free.

    Of all with at least `low` units there are enough, of those with at least `low + width` there are not; each round
    holds `CUTS` bounds against them, until one is left between."""
    ranked = ranks_by(units, fixed, free)
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


@triton.jit(
    do_not_specialize=["length_step", "pages", "list_length", "sinks", "local", "most", "ahead"],
    do_not_specialize_on_alignment=["lengths", "starts", "shares", "counts", "indices"],
)
def page_list_kernel(
    scores, lengths, starts, shares, counts, indices, length_step, pages, list_length, sinks, local, most, ahead,
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
    until = tl.minimum(tl.cdiv(length + ahead, PAGE_SIZE), pages)
    pair = batch.to(tl.int64) * tl.num_programs(0) + head
    page = tl.arange(0, PAGES)
    members = tl.arange(0, MEMBERS)
    found = tl.load(
        scores + (pair * GROUP + members[:, None]) * pages + page[None, :],
        mask=(members < GROUP)[:, None] & (page < used)[None, :], other=0.0, cache_modifier=".cg",
    )  # fmt: skip
    found = counted_in(found, page, length, seen_from, used, PAGE_SIZE)
    peak = tl.max(found, 1)[:, None]
    scale = (UNIT / GROUP) / tl.sum(tl.exp2(found - peak), 1)[:, None]
    units = in_units(found, members, peak, scale, GROUP)
    fixed, free = page_kinds(page, length, seen_from, used, until, sinks, local, PAGE_SIZE)
    seen = tl.where(length > seen_from, until - seen_from // PAGE_SIZE, 0)
    kept, place, count = smallest_set(units, fixed, free, seen, in_whole_units(share), most, CUTS)
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
    """`page_list_kernel` by many programs: each ranks a tile of pages among all, by counting what comes before them and
    what that holds, and lists those that are kept at the place of their rank."""
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
    page, mine, members = tl.arange(0, PAGES), tile * TILE + tl.arange(0, TILE), tl.arange(0, MEMBERS)
    rows, real = scores + (pair * GROUP + members[:, None]) * pages, (members < GROUP)[:, None]
    found = tl.load(rows + page[None, :], mask=real & (page < used)[None, :], other=0.0, cache_modifier=".cg")
    found = counted_in(found, page, length, seen_from, used, PAGE_SIZE)
    peak = tl.max(found, 1)[:, None]
    scale = (UNIT / GROUP) / tl.sum(tl.exp2(found - peak), 1)[:, None]
    units = in_units(found, members, peak, scale, GROUP)
    fixed, free = page_kinds(page, length, seen_from, used, until, sinks, local, PAGE_SIZE)
    ranked = ranks_by(units, fixed, free)
    # by a sum, as ranks are, so that all of `mine` lies with the same threads: moving it costs more
    held = tl.sum(tl.where(page[None, :] == mine[:, None], units[None, :], 0), 1)
    always, maybe = page_kinds(mine, length, seen_from, used, until, sinks, local, PAGE_SIZE)
    rank_by = ranks_by(held, always, maybe)
    before = (ranked[None, :] > rank_by[:, None]) | (
        (ranked[None, :] == rank_by[:, None]) & (page[None, :] < mine[:, None])
    )
    # two sums of 32 bits: a warp takes them in one instruction each, which one of 64 bits does not have
    rank, mass = tl.sum(before.to(tl.int32), 1), tl.sum(tl.where(before, units[None, :], 0), 1)
    wanted = in_whole_units(share)
    kept = always | (maybe & (mass < wanted) & (rank < most))
    reached = (mass + held >= wanted) | (rank + 1 >= most)
    constant = always_read(seen_from, used, until, sinks, local, PAGE_SIZE)
    last = kept & ((rank + 1 == seen) | ((rank + 1 >= constant) & reached))
    none = (rank == 0) & maybe & (kept == 0)
    tl.store(indices + pair * list_length + rank, mine, mask=kept)
    # one program's alone: of the last that is kept, or where nothing is
    tl.store(counts + pair + tl.zeros([TILE], tl.int32), tl.where(kept, rank + 1, 0), mask=last | none)
