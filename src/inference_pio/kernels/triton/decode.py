"""Attention of one new token a row: many programs share its tokens, then a second kernel joins what they found.

The true length is read on the device, so that one recorded graph serves every length. The plain truth is
`kernels.decode_attention.naive_decode_attention`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

import triton
import triton.language as tl
from inference_pio.kernels.page_list import PageList
from inference_pio.kernels.triton.attention_support import supports_decode
from inference_pio.kernels.triton.launch import (
    PAGE,
    CodedLaunch,
    DecodeLaunch,
    LatentLaunch,
    choose_decode_launch,
    device_limits,
    on_device,
)
from inference_pio.kernels.triton.overlap import let_others_begin, may_overlap, overlapping, wait_for_others
from inference_pio.kernels.triton.support import require

LOG2_E = tl.constexpr(1.4426950408889634)
HIDDEN = tl.constexpr(-1.0e30)
LEAST = tl.constexpr(1.0e-30)
FEW_SPLITS = tl.constexpr(66)
COLUMNS = 64
"""Columns of the output that one joining program writes."""
JOINED_NUMBERS = 4096
"""Numbers that the last program of a key head holds at a time of what the others left: 32 a thread."""


@dataclass(frozen=True)
class DecodeScratch:
    """What the programs leave for the one that joins: float32 [B, H, splits, D] and [B, H, splits].

    With `arrived`, int32 [B, key heads] of zeros between launches, the last program of a key head joins them, and
    there is no second kernel. Launches that run at the same time need one each.
    """

    partial: torch.Tensor
    weight: torch.Tensor
    arrived: torch.Tensor | None = None

    @classmethod
    def of(
        cls, batch: int, heads: int, head_dim: int, launch: DecodeLaunch | CodedLaunch | LatentLaunch,
        device: torch.device, *, counted: int = 0,
    ) -> DecodeScratch:  # fmt: skip
        """`counted`: of so many key heads the programs that have come are counted, so that the last one joins."""
        shape = (batch, heads, launch.splits)
        arrived = torch.zeros(batch, counted, dtype=torch.int32, device=device) if counted else None
        return cls(torch.empty(*shape, head_dim, device=device), torch.empty(shape, device=device), arrived)


@triton.jit
def share(batch, key_head, key_heads, split, lengths, length_step, starts, counts, PAGE_SIZE: tl.constexpr,
           SPLITS: tl.constexpr, HAS_STARTS: tl.constexpr, LISTED: tl.constexpr):  # fmt: skip
    """The pages (or list entries) from begin to end that each split takes, as even as whole pages allow; the tokens of
    them that are seen; how many splits have any: the first ones."""
    length = tl.load(lengths + batch * length_step)
    first = 0
    if HAS_STARTS:
        first = tl.maximum(tl.load(starts + batch), 0)
    seen_from = first
    if LISTED:
        first, pages = 0, tl.load(counts + batch * key_heads + key_head)
    else:
        first = first // PAGE_SIZE
        pages = tl.maximum(tl.cdiv(length, PAGE_SIZE) - first, 0)
    last, busy = first + pages, tl.minimum(pages, SPLITS)
    begin = tl.minimum(first + split * pages // tl.maximum(busy, 1), last)
    end = tl.minimum(first + (split + 1) * pages // tl.maximum(busy, 1), last)
    return begin, end, seen_from, length, busy


@triton.jit
def join_all(partial, weight, out, row, out_place, out_head, splits,
             GROUP: tl.constexpr, MEMBERS: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
             SPLIT_ROWS: tl.constexpr, AT_ONCE: tl.constexpr):  # fmt: skip
    """Join what all splits of the query heads of one key head have left, past the first cache, which may be older."""
    member, split, columns = tl.arange(0, MEMBERS), tl.arange(0, SPLIT_ROWS), tl.arange(0, WIDTH)
    rows = row + tl.minimum(member, GROUP - 1) * SPLITS
    written = (member < GROUP)[:, None] & (split < splits)[None, :]
    weights = tl.load(weight + rows[:, None] + split[None, :], mask=written, other=float("-inf"), cache_modifier=".cg")
    highest = tl.maximum(tl.max(weights, 1), HIDDEN)  # all may be blind: then all weigh nothing
    total = tl.maximum(tl.sum(tl.exp2(weights - highest[:, None]), 1), LEAST)
    joined = tl.zeros([MEMBERS, WIDTH], tl.float32)
    for first in tl.range(0, splits, AT_ONCE):
        some = first + tl.arange(0, AT_ONCE)
        here = (member < GROUP)[:, None] & (some < splits)[None, :]
        places = rows[:, None] + some[None, :]
        shares = tl.load(weight + places, mask=here, other=float("-inf"), cache_modifier=".cg")
        shares = tl.exp2(shares - highest[:, None]) / total[:, None]
        found = tl.load(
            partial + places[:, :, None] * WIDTH + columns[None, None, :], mask=here[:, :, None], other=0.0,
            cache_modifier=".cg",
        )  # fmt: skip
        joined += tl.sum(found * shares[:, :, None], 1)
    places = out_place + member[:, None] * out_head + columns[None, :]
    tl.store(places, joined.to(out.dtype.element_ty), mask=(member < GROUP)[:, None])


@triton.jit(
    do_not_specialize=["table_batch", "list_length", "length_step", "heads"],
    do_not_specialize_on_alignment=["lengths", "starts", "table", "counts", "indices", "arrived"],
)
def decode_kernel(
    query, key, value, partial, weight, arrived, out, lengths, starts, table, counts, indices,
    query_batch, query_head, key_batch, key_page, key_token, key_head, value_batch, value_page, value_token, value_head,
    table_batch, list_length, length_step, heads, scale, out_batch, out_head,
    PAGE_SIZE: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
    SPLIT_ROWS: tl.constexpr, MEMBERS: tl.constexpr, AT_ONCE: tl.constexpr, HAS_STARTS: tl.constexpr,
    PAGED: tl.constexpr, LISTED: tl.constexpr, JOINED: tl.constexpr, LEADS: tl.constexpr, DEPENDENT: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    split, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if LEADS:
        let_others_begin(INTERPRETED)
    if DEPENDENT:
        wait_for_others(INTERPRETED)
    key_heads = heads // GROUP
    rows, columns, tokens = tl.arange(0, ROWS), tl.arange(0, WIDTH), tl.arange(0, PAGE_SIZE)
    first_head = head * GROUP
    # asked for before anything is waited for
    query_places = query + batch * query_batch + (first_head + rows)[:, None] * query_head + columns[None, :]
    queries = tl.load(query_places, mask=(rows < GROUP)[:, None], other=0.0)
    begin, end, seen_from, seen_to, busy = share(
        batch, head, key_heads, split, lengths, length_step, starts, counts, PAGE_SIZE, SPLITS, HAS_STARTS, LISTED
    )
    out_place = out + batch * out_batch + first_head * out_head
    if begin >= end:
        if JOINED and (split == 0):  # without pages for the first, there are none for any
            nothing = tl.zeros([ROWS, WIDTH], out.dtype.element_ty)
            tl.store(out_place + rows[:, None] * out_head + columns[None, :], nothing, mask=(rows < GROUP)[:, None])
        return
    if INTERPRETED:  # the interpreter multiplies the bits of bfloat16
        queries = queries.to(tl.float32)
    key_base = key + head.to(tl.int64) * key_head + tokens[:, None] * key_token + columns[None, :]
    value_base = value + head.to(tl.int64) * value_head + tokens[:, None] * value_token + columns[None, :]
    if not PAGED:
        key_base += batch.to(tl.int64) * key_batch
        value_base += batch.to(tl.int64) * value_batch
    listed = indices
    if LISTED:
        listed = indices + (batch * key_heads + head) * list_length

    summed = tl.zeros([ROWS, WIDTH], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    scale2 = scale * LOG2_E
    for step in tl.range(begin, end):
        page = step
        if LISTED:
            page = tl.load(listed + step)
        held = page
        if PAGED:
            held = tl.load(table + batch * table_batch + page)
        places = page * PAGE_SIZE + tokens
        visible = (places >= seen_from) & (places < seen_to)
        keys = tl.load(key_base + held.to(tl.int64) * key_page, mask=visible[:, None], other=0.0)
        if INTERPRETED:
            keys = keys.to(tl.float32)
        scores = tl.dot(queries, tl.trans(keys))
        scores = tl.where(visible[None, :], scores, HIDDEN)
        higher = tl.maximum(peak, tl.max(scores, 1) * scale2)
        # a fused product is not rounded: minus its rounded twin it is no zero where HIDDEN is the peak
        shares = tl.where(visible[None, :], tl.exp2(scores * scale2 - higher[:, None]), 0.0)
        shrink = tl.exp2(peak - higher)
        total = total * shrink + tl.sum(shares, 1)
        values = tl.load(value_base + held.to(tl.int64) * value_page, mask=visible[:, None], other=0.0)
        if INTERPRETED:
            values = values.to(tl.float32)
        summed = tl.dot(shares.to(values.dtype), values, summed * shrink[:, None])
        peak = higher

    blind = peak < scale2 * (0.5 * HIDDEN)
    left = ((batch * heads + first_head + rows) * SPLITS + split).to(tl.int64)
    tl.store(partial + left[:, None] * WIDTH + columns[None, :], summed / tl.maximum(total, LEAST)[:, None],
             mask=(rows < GROUP)[:, None])  # fmt: skip
    tl.store(weight + left, tl.where(blind, float("-inf"), peak + tl.log2(total)), mask=rows < GROUP)
    if JOINED:
        tl.debug_barrier()
        came_before = tl.atomic_add(arrived + batch * key_heads + head, 1, sem="acq_rel")
        if came_before == busy - 1:
            tl.store(arrived + batch * key_heads + head, 0)
            row = (batch * heads + first_head).to(tl.int64) * SPLITS
            join_all(partial, weight, out, row, out_place, out_head, busy, GROUP, MEMBERS, WIDTH, SPLITS, SPLIT_ROWS,
                     AT_ONCE)  # fmt: skip


@triton.jit(do_not_specialize=["length_step", "heads"], do_not_specialize_on_alignment=["lengths", "starts", "counts"])
def join_kernel(
    partial, weight, out, lengths, starts, counts, out_batch, out_head, length_step, heads,
    PAGE_SIZE: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
    SPLIT_ROWS: tl.constexpr, BLOCK: tl.constexpr, HAS_STARTS: tl.constexpr, LISTED: tl.constexpr,
    ALL: tl.constexpr, DEPENDENT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    # ALL: every split tells its weight, and one that has none has left no sums.
    head, batch = tl.program_id(0), tl.program_id(1)
    if DEPENDENT:
        wait_for_others(INTERPRETED)
    splits = tl.arange(0, SPLIT_ROWS)
    held = splits < SPLITS
    row = (batch * heads + head).to(tl.int64) * SPLITS
    columns = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    # Few splits are asked for at once; what one without pages left is of an earlier launch, and is not looked at.
    weights = tl.load(weight + row + splits, mask=held, other=float("-inf"))
    places = partial + (row + splits)[:, None] * WIDTH + columns[None, :]
    if SPLITS <= FEW_SPLITS:
        found = tl.load(places, mask=held[:, None], other=0.0)
    if ALL:
        written = held & (weights > float("-inf"))
    else:
        begin, end, _seen_from, _seen_to, _busy = share(
            batch, head // GROUP, heads // GROUP, splits, lengths, length_step, starts, counts, PAGE_SIZE, SPLITS,
            HAS_STARTS, LISTED,
        )  # fmt: skip
        written = held & (begin < end)
    if SPLITS > FEW_SPLITS:
        found = tl.load(places, mask=written[:, None], other=0.0)
    weights, found = tl.where(written, weights, float("-inf")), tl.where(written[:, None], found, 0.0)
    highest = tl.max(weights, 0)
    shares = tl.where(weights == float("-inf"), 0.0, tl.exp2(weights - highest))
    shares = shares / tl.maximum(tl.sum(shares, 0), LEAST)
    joined = tl.sum(found * shares[:, None], 0)
    tl.store(out + batch * out_batch + head * out_head + columns, joined.to(out.dtype.element_ty))


def decode_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: torch.Tensor,
    starts: torch.Tensor | None = None,
    *,
    table: torch.Tensor | None = None,
    pages: PageList | None = None,
    scale: float | None = None,
    out: torch.Tensor | None = None,
    scratch: DecodeScratch | None = None,
    launch: DecodeLaunch | None = None,
    dependent: bool = False,
) -> torch.Tensor:
    """`query` [B, H, D] over a cache `key`, `value` [B, capacity, key heads, D], or with a `table` int32 [B, pages]
    over pools [P, 64, key heads, D]: [B, H, D].

    Row b sees tokens `starts[b]` to `lengths[b]`, both int32 on the device ([1] lengths serve all rows), of the listed
    `pages` alone if given. `dependent`: it may begin before the launch in front of it has ended. Nothing is allocated
    where `out`, `scratch` and `launch` are given; nothing waits for the device. Raises InvalidSetting for tensors that
    `supports_decode` refuses.
    """
    require(supports_decode(query, key, value, lengths, starts, table))
    batch, heads, width = query.shape
    key_heads = key.shape[2]
    capacity = key.shape[1] if table is None else table.shape[1] * PAGE
    launch = launch or choose_decode_launch(device_limits(query.device), batch, key_heads, width, capacity)
    out = torch.empty_like(query, memory_format=torch.contiguous_format) if out is None else out
    scratch = scratch or DecodeScratch.of(batch, heads, width, launch, query.device)
    group = heads // key_heads
    length_step = int(lengths.numel() > 1)
    flags = {"HAS_STARTS": starts is not None, "LISTED": pages is not None, "PAGE_SIZE": PAGE, "GROUP": group}
    flags |= {"WIDTH": width, "SPLITS": launch.splits, "num_warps": launch.warps}
    counts, indices = (pages.counts, pages.indices) if pages else (None, None)
    split_rows, members = (max(2, triton.next_power_of_2(number)) for number in (launch.splits, group))
    joined, at_once = scratch.arrived is not None, max(1, min(split_rows, JOINED_NUMBERS // (members * width)))
    overlaps = may_overlap(query.device)
    with on_device(query):
        decode_kernel[(launch.splits, key_heads, batch)](
            query, key, value, scratch.partial, scratch.weight, scratch.arrived, out, lengths, starts, table, counts,
            indices, query.stride(0), query.stride(1), *strides(key, table), *strides(value, table),
            0 if table is None else table.stride(0), 0 if indices is None else indices.shape[-1], length_step, heads,
            width**-0.5 if scale is None else scale, out.stride(0), out.stride(1),
            ROWS=max(16, triton.next_power_of_2(group)), MEMBERS=members, AT_ONCE=at_once,
            SPLIT_ROWS=split_rows, PAGED=table is not None, JOINED=joined, LEADS=overlaps and not joined,
            num_stages=launch.stages, **flags, **overlapping(dependent),
        )  # fmt: skip
        if not joined:
            block = min(COLUMNS, width)
            join_kernel[(heads, batch, width // block)](
                scratch.partial, scratch.weight, out, lengths, starts, counts, out.stride(0), out.stride(1),
                length_step, heads, SPLIT_ROWS=split_rows, BLOCK=block, ALL=False, **flags, **overlapping(overlaps),
            )  # fmt: skip
    return out


def strides(cache: torch.Tensor, table: torch.Tensor | None = None) -> tuple[int, int, int, int]:
    """Batch, page, token and head strides of a cache, or of a pool of pages."""
    first, token, head, _ = cache.stride()
    return (0, first, token, head) if table is not None else (first, PAGE * token, token, head)
