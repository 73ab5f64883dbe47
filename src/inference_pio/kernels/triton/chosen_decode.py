"""Attention of one new token over pages that its programs choose themselves: score, choose, attend, join, at once.

What one program leaves for others is its own sign that it is there: a word of scratch is `ABSENT` until it is written,
and is made so again by the one who read it last. All programs of a launch must be on the GPU at once for that; where
they are not, and in the interpreter, the same kernel is launched once for each part. The plain truth is
`kernels.block_choice.Ranked` over `kernels.page_estimate.estimate_pages`, then `naive_decode_attention` over its pages.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

import triton
import triton.language as tl
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.page_estimate import SCORERS
from inference_pio.kernels.page_summary import PageSummary
from inference_pio.kernels.triton.launch import (
    PAGE,
    PARTS,
    ChosenLaunch,
    choose_chosen_launch,
    device_limits,
    on_device,
)
from inference_pio.kernels.triton.overlap import may_overlap, overlapping, wait_for_others
from inference_pio.kernels.triton.page_choice import choice
from inference_pio.kernels.triton.page_summary import page_keys, summary_of
from inference_pio.kernels.triton.support import require, supports_decode

LOG2_E = tl.constexpr(1.4426950408889634)
HIDDEN = tl.constexpr(-1.0e30)
LEAST = tl.constexpr(1.0e-30)
ABSENT = tl.constexpr(-1)
"""No sum has these bits: what is not a number is `NO_NUMBER` where a GPU makes it."""
MOST_TRIES = tl.constexpr(2**20)
"""About a second; what is absent then is no number, nor is what is made of it."""
NO_NUMBER = tl.constexpr(0x7FFFFFFF)


@dataclass(frozen=True)
class ChosenScratch:
    """Bits of float32, `ABSENT` between launches: scores [B, H, room for pages]; sums, and beside each the weight of
    its split, [B, key heads, readers, splits, group, 2, columns], where a reader joins some columns of a key head.
    `counts` int32 [B, key heads]: the pages that were read. Launches at the same time need one each."""

    scores: torch.Tensor
    partial: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def of(
        cls, batch: int, heads: int, key_heads: int, head_dim: int, pages: int, launch: ChosenLaunch,
        device: torch.device,
    ) -> ChosenScratch:  # fmt: skip
        readers, group = head_dim // launch.columns, heads // key_heads
        shape = (batch, key_heads, readers, launch.splits, group, 2, launch.columns)
        sizes = ((batch, heads, padded(pages)), shape, (batch, key_heads))
        return cls(*(torch.full(size, -1, dtype=torch.int32, device=device) for size in sizes))


def padded(pages: int) -> int:
    """Room for so many scores that each thread of a program reads others: two that read one word might see it come at
    different times, and would part ways in the loop that waits for it."""
    return max(256, triton.next_power_of_2(pages))


@triton.jit
def as_left(numbers):
    """The bits of float32 numbers, none of which say that they are absent."""
    bits = numbers.to(tl.int32, bitcast=True)
    return tl.where(bits == ABSENT, NO_NUMBER, bits)


@triton.jit
def page_products(asked, least, largest, mean, offsets, held, scale2, MEANS: tl.constexpr, BOUNDS: tl.constexpr,
                  INTERPRETED: tl.constexpr):  # fmt: skip
    """Scores [ROWS, TILE] of some pages, in powers of two: by their bounds, their means, or the middle of the two."""
    if BOUNDS:
        above = tl.load(largest + offsets, mask=held, other=0.0)
        below = tl.load(least + offsets, mask=held, other=0.0)
        if INTERPRETED:  # the interpreter multiplies the bits of bfloat16
            above, below = above.to(tl.float32), below.to(tl.float32)
        nothing = tl.zeros_like(asked)
        found = tl.dot(tl.where(asked > 0.0, asked, nothing), tl.trans(above))
        found = tl.dot(tl.where(asked > 0.0, nothing, asked), tl.trans(below), found)
    if MEANS:
        means = tl.load(mean + offsets, mask=held, other=0.0)
        products = tl.dot(asked.to(tl.float32), tl.trans(means), input_precision="tf32x3")
        if BOUNDS:
            found = 0.5 * (found + products)
        else:
            found = products
    return found * scale2


@triton.jit
def join_columns(partial, out, pair, reader, out_place, out_head, GROUP: tl.constexpr, MEMBERS: tl.constexpr,
                 READERS: tl.constexpr, SPLITS: tl.constexpr, SPLIT_ROWS: tl.constexpr,
                 COLUMNS: tl.constexpr):  # fmt: skip
    """Wait for what all splits of a key head have left of some columns, join it, and leave room for the next launch."""
    other, member, word = tl.arange(0, SPLIT_ROWS), tl.arange(0, MEMBERS), tl.arange(0, 2 * COLUMNS)
    came = (other < SPLITS)[:, None, None] & (member < GROUP)[None, :, None] & (word >= 0)[None, None, :]
    places = partial + ((pair * READERS + reader) * SPLITS + other)[:, None, None] * (GROUP * 2 * COLUMNS)
    places += member[None, :, None] * (2 * COLUMNS) + word[None, None, :]
    bits = tl.load(places, mask=came, other=0, volatile=True)
    tries = 0
    while (tries < MOST_TRIES) & (tl.max(tl.max(tl.max((bits == ABSENT).to(tl.int32), 2), 1), 0) > 0):
        tries += 1
        bits = tl.load(places, mask=came, other=0, volatile=True)
    both = tl.where(came, bits.to(tl.float32, bitcast=True), float("-inf"))
    sums, levels = tl.split(tl.permute(tl.reshape(both, [SPLIT_ROWS, MEMBERS, 2, COLUMNS]), (0, 1, 3, 2)))
    highest = tl.maximum(tl.max(levels, 0), HIDDEN)  # all may be blind: then all weigh nothing
    parts = tl.exp2(levels - highest[None, :, :])
    parts = parts / tl.maximum(tl.sum(parts, 0), LEAST)[None, :, :]
    joined = tl.sum(tl.where(parts > 0.0, sums * parts, 0.0), 0)
    column = reader * COLUMNS + tl.arange(0, COLUMNS)
    tl.store(out_place + member[:, None] * out_head + column[None, :], joined.to(out.dtype.element_ty),
             mask=(member < GROUP)[:, None])  # fmt: skip
    tl.store(places, tl.full([SPLIT_ROWS, MEMBERS, 2 * COLUMNS], ABSENT, tl.int32), mask=came)


@triton.jit(
    do_not_specialize=["length_step", "pages", "sinks", "local", "most"],
    do_not_specialize_on_alignment=["lengths", "starts", "shares", "counts"],
)
def chosen_decode_kernel(
    query, key, value, least, largest, mean, scores, partial, counts, out, lengths, starts, shares,
    query_batch, query_head, key_batch, key_token, key_head, value_batch, value_token, value_head, out_batch, out_head,
    length_step, pages, sinks, local, most, scale,
    GROUP: tl.constexpr, ROWS: tl.constexpr, MEMBERS: tl.constexpr, WIDTH: tl.constexpr, PAGE_SIZE: tl.constexpr,
    TILE: tl.constexpr, PAGES: tl.constexpr, SPLITS: tl.constexpr, SPLIT_ROWS: tl.constexpr, SLOTS: tl.constexpr,
    CUTS: tl.constexpr, COLUMNS: tl.constexpr, MEANS: tl.constexpr, BOUNDS: tl.constexpr, HAS_STARTS: tl.constexpr,
    WRITTEN: tl.constexpr, SCORES: tl.constexpr, ATTENDS: tl.constexpr, JOINS: tl.constexpr, DEPENDENT: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    split, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if DEPENDENT:
        wait_for_others(INTERPRETED)
    pair = batch.to(tl.int64) * tl.num_programs(1) + head
    rows, columns, tokens = tl.arange(0, ROWS), tl.arange(0, WIDTH), tl.arange(0, PAGE_SIZE)
    READERS: tl.constexpr = WIDTH // COLUMNS
    length = tl.load(lengths + batch * length_step)
    asked = tl.load(query + batch * query_batch + (head * GROUP + rows)[:, None] * query_head + columns[None, :],
                    mask=(rows < GROUP)[:, None], other=0.0)  # fmt: skip
    if INTERPRETED:
        asked = asked.to(tl.float32)
    seen_from = 0
    if HAS_STARTS:
        seen_from = tl.maximum(tl.load(starts + batch), 0)
    used = tl.minimum(tl.cdiv(length, PAGE_SIZE), pages)
    tiles = tl.cdiv(used, TILE)
    scored = scores + pair * (GROUP * PAGES)
    scale2 = scale * LOG2_E

    if SCORES:
        last = tl.maximum(used - 1, 0)
        mine = (used > 0) & ((last // TILE) % SPLITS == split)
        if WRITTEN:  # asked for before anything is waited for
            base = key + batch.to(tl.int64) * key_batch + head.to(tl.int64) * key_head
            begin = tl.maximum(last * PAGE_SIZE, seen_from)
            end = tl.where(mine, length, 0)
            held = page_keys(base, begin, end, last, columns, key_token, WIDTH, PAGE_SIZE)
        for tile in tl.range(split, tiles, SPLITS):
            over = tile * TILE + tl.arange(0, TILE)
            offsets = (pair * pages + over)[:, None] * WIDTH + columns[None, :]
            found = page_products(asked, least, largest, mean, offsets, (over < used)[:, None], scale2, MEANS, BOUNDS,
                                  INTERPRETED)  # fmt: skip
            known = used
            if WRITTEN:
                known = last
            tl.store(scored + rows[:, None] * PAGES + over[None, :], as_left(found),
                     mask=(rows < GROUP)[:, None] & (over < known)[None, :])  # fmt: skip
        if WRITTEN:  # noqa: SIM102 (one of them is known when this is compiled)
            if mine:  # the page that the last token was written to is summed up and scored by itself
                low, high, average = summary_of(held, begin, end, last, columns, WIDTH, PAGE_SIZE)
                place = (pair * pages + last) * WIDTH + columns
                tl.store(least + place, low.to(least.dtype.element_ty))
                tl.store(largest + place, high.to(largest.dtype.element_ty))
                tl.store(mean + place, average)
                wide = asked.to(tl.float32)
                if BOUNDS:
                    products = wide * tl.where(wide > 0.0, high[None, :], low[None, :])
                    if MEANS:
                        products = 0.5 * (products + wide * average[None, :])
                else:
                    products = wide * average[None, :]
                tl.store(scored + rows * PAGES + last, as_left(tl.sum(products, 1) * scale2), mask=rows < GROUP)

    if ATTENDS:
        share = tl.load(shares + head)
        member, page = tl.arange(0, MEMBERS), tl.arange(0, PAGES)
        places = scored + member[:, None] * PAGES + page[None, :]
        there = (member < GROUP)[:, None] & (page < used)[None, :]
        bits = tl.load(places, mask=there, other=0, volatile=True)
        tries = 0
        while (tries < MOST_TRIES) & (tl.max(tl.max((bits == ABSENT).to(tl.int32), 1), 0) > 0):
            bits = tl.load(places, mask=there, other=0, volatile=True)
            tries += 1
        kept, place, count = choice(
            bits.to(tl.float32, bitcast=True), member, page, length, seen_from, used, share, sinks, local, most, GROUP,
            PAGE_SIZE, CUTS,
        )  # fmt: skip
        if split == 0:
            tl.store(counts + pair, count)
        busy = tl.maximum(tl.minimum(count, SPLITS), 1)
        begin = tl.minimum(split * count // busy, count)
        end = tl.minimum((split + 1) * count // busy, count)
        slots = tl.arange(0, SLOTS)
        mine = kept[None, :] & (place[None, :] == begin + slots[:, None])
        mine = tl.sum(tl.where(mine, page[None, :], 0), 1)

        key_base = key + batch.to(tl.int64) * key_batch + head.to(tl.int64) * key_head
        value_base = value + batch.to(tl.int64) * value_batch + head.to(tl.int64) * value_head
        summed = tl.zeros([ROWS, WIDTH], tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        peak = tl.full([ROWS], float("-inf"), tl.float32)
        for step in tl.range(0, end - begin):
            number = tl.sum(tl.where(slots == step, mine, 0), 0)
            spots = number * PAGE_SIZE + tokens
            sees = (spots >= seen_from) & (spots < length)
            keys = tl.load(key_base + spots.to(tl.int64)[:, None] * key_token + columns[None, :], mask=sees[:, None],
                           other=0.0)  # fmt: skip
            if INTERPRETED:
                keys = keys.to(tl.float32)
            found = tl.where(sees[None, :], tl.dot(asked, tl.trans(keys)), HIDDEN)
            higher = tl.maximum(peak, tl.max(found, 1) * scale2)
            # a fused product is not rounded: minus its rounded twin it is no zero where HIDDEN is the peak
            parts = tl.where(sees[None, :], tl.exp2(found * scale2 - higher[:, None]), 0.0)
            shrink = tl.exp2(peak - higher)
            total = total * shrink + tl.sum(parts, 1)
            values = tl.load(value_base + spots.to(tl.int64)[:, None] * value_token + columns[None, :],
                             mask=sees[:, None], other=0.0)  # fmt: skip
            if INTERPRETED:
                values = values.to(tl.float32)
            summed = tl.dot(parts.to(values.dtype), values, summed * shrink[:, None])
            peak = higher
        blind = peak < scale2 * (0.5 * HIDDEN)
        level = tl.where(blind, float("-inf"), peak + tl.log2(total))
        left = (((pair * READERS + columns // COLUMNS) * SPLITS + split) * GROUP)[None, :] + rows[:, None]
        left = partial + left * (2 * COLUMNS) + (columns % COLUMNS)[None, :]
        tl.store(left, as_left(summed / tl.maximum(total, LEAST)[:, None]), mask=(rows < GROUP)[:, None])
        levels = tl.broadcast_to(as_left(level)[:, None], [ROWS, WIDTH])
        tl.store(left + COLUMNS, levels, mask=(rows < GROUP)[:, None])

    if JOINS:  # noqa: SIM102 (one of them is known when this is compiled)
        if split < READERS:
            out_place = out + batch * out_batch + head * GROUP * out_head
            join_columns(partial, out, pair, split, out_place, out_head, GROUP, MEMBERS, READERS, SPLITS,
                         SPLIT_ROWS, COLUMNS)  # fmt: skip
            # who has left sums has read all scores, and a reader has seen those of all
            member = tl.arange(0, MEMBERS)
            for tile in tl.range(split, tiles, READERS):
                over = tile * TILE + tl.arange(0, TILE)
                tl.store(scored + member[:, None] * PAGES + over[None, :], tl.full([MEMBERS, TILE], ABSENT, tl.int32),
                         mask=(member < GROUP)[:, None] & (over < used)[None, :])  # fmt: skip


def chosen_decode(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, summary: PageSummary, lengths: torch.Tensor,
    shares: torch.Tensor, *, budget: int, starts: torch.Tensor | None = None, scale: float | None = None,
    scorer: str = "mean", sinks: int = 1, local: int = 2, written: bool = False, out: torch.Tensor | None = None,
    scratch: ChosenScratch | None = None, launch: ChosenLaunch | None = None, dependent: bool = False,
) -> torch.Tensor:  # fmt: skip
    """`query` [B, H, D] over the pages of a cache `key`, `value` [B, capacity, key heads, D] that `choose_pages` would
    list for it: [B, H, D]. `written`: the summary does not know the cache's last token yet, and is renewed on the way.

    `lengths` and `starts` are int32 on the device. `dependent`: it may begin before the launch in front of it has
    ended. Nothing is allocated where `out`, `scratch` and `launch` are given; nothing waits for the device.
    """
    require(supports_decode(query, key, value, lengths, starts))
    batch, heads, width = query.shape
    key_heads, pages = summary.mean.shape[1:3]
    if scorer not in SCORERS:
        raise InvalidSetting(f"pages are scored by one of {', '.join(SCORERS)}, not by {scorer!r}.")
    launch = launch or choose_chosen_launch(device_limits(query.device), batch, heads, key_heads, width, pages, budget)
    if launch is None:
        raise InvalidSetting(
            f"one launch does not choose {budget} of {pages} pages for {heads} heads: list them by choose_pages, then "
            "decode over the list."
        )
    capped = min(max(budget, sinks + local), pages)
    out = torch.empty_like(query, memory_format=torch.contiguous_format) if out is None else out
    scratch = scratch or ChosenScratch.of(batch, heads, key_heads, width, pages, launch, query.device)
    group = heads // key_heads
    interpreted = overlapping(False)["INTERPRETED"]
    launches, overlaps = launch.launches, may_overlap(query.device)
    if interpreted:
        launches = tuple((part,) for part in PARTS)
    with on_device(query):
        for number, parts in enumerate(launches):
            flags = overlapping(overlaps if number else dependent)
            if launch.cooperative and len(parts) > 1:
                flags["launch_cooperative_grid"] = True
            chosen_decode_kernel[(launch.splits, key_heads, batch)](
                query, key, value, summary.minimum, summary.maximum, summary.mean, scratch.scores, scratch.partial,
                scratch.counts, out, lengths, starts, shares, query.stride(0), query.stride(1),
                *key.stride()[:3], *value.stride()[:3], out.stride(0), out.stride(1), int(lengths.numel() > 1), pages,
                sinks, local, capped, width**-0.5 if scale is None else scale, GROUP=group,
                ROWS=max(16, triton.next_power_of_2(group)), MEMBERS=triton.next_power_of_2(group), WIDTH=width,
                PAGE_SIZE=PAGE, TILE=launch.tile, PAGES=padded(pages), SPLITS=launch.splits,
                SPLIT_ROWS=triton.next_power_of_2(launch.splits),
                SLOTS=triton.next_power_of_2(triton.cdiv(capped, launch.splits)), CUTS=launch.cuts,
                COLUMNS=launch.columns, MEANS=scorer != "bounds", BOUNDS=scorer != "mean",
                HAS_STARTS=starts is not None, WRITTEN=written, num_warps=launch.warps, num_stages=launch.stages,
                **{part: part in parts for part in PARTS}, **flags,
            )  # fmt: skip
    return out
