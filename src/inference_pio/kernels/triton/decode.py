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
from inference_pio.kernels.triton.launch import (
    PAGE,
    DecodeLaunch,
    LatentLaunch,
    choose_decode_launch,
    device_limits,
    on_device,
)
from inference_pio.kernels.triton.overlap import overlapping, wait_for_others
from inference_pio.kernels.triton.support import require, supports_decode

LOG2_E = tl.constexpr(1.4426950408889634)
HIDDEN = tl.constexpr(-1.0e30)
LEAST = tl.constexpr(1.0e-30)
COLUMNS = 64
"""Columns of the output that one joining program writes."""


@dataclass(frozen=True)
class DecodeScratch:
    """What the programs leave for the joining kernel: float32 [B, H, splits, D] and [B, H, splits]."""

    partial: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def of(
        cls, batch: int, heads: int, head_dim: int, launch: DecodeLaunch | LatentLaunch, device: torch.device
    ) -> DecodeScratch:  # fmt: skip
        shape = (batch, heads, launch.splits)
        return cls(torch.empty(*shape, head_dim, device=device), torch.empty(shape, device=device))


@triton.jit
def share(batch, key_head, key_heads, split, lengths, length_step, starts, counts, PAGE_SIZE: tl.constexpr,
           SPLITS: tl.constexpr, HAS_STARTS: tl.constexpr, LISTED: tl.constexpr):  # fmt: skip
    """The pages (or list entries) from begin to end that each split takes: as even as whole pages allow."""
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
    return first + split * pages // SPLITS, first + (split + 1) * pages // SPLITS, seen_from, length


@triton.jit(
    do_not_specialize=["table_batch", "list_length", "length_step", "heads"],
    do_not_specialize_on_alignment=["lengths", "starts", "table", "counts", "indices"],
)
def decode_kernel(
    query, key, value, partial, weight, lengths, starts, table, counts, indices,
    query_batch, query_head, key_batch, key_page, key_token, key_head, value_batch, value_page, value_token, value_head,
    table_batch, list_length, length_step, heads, scale,
    PAGE_SIZE: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
    HAS_STARTS: tl.constexpr, PAGED: tl.constexpr, LISTED: tl.constexpr, DEPENDENT: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    if DEPENDENT:
        wait_for_others(INTERPRETED)
    split, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    key_heads = heads // GROUP
    begin, end, seen_from, seen_to = share(
        batch, head, key_heads, split, lengths, length_step, starts, counts, PAGE_SIZE, SPLITS, HAS_STARTS, LISTED
    )
    if begin >= end:
        return
    rows, columns, tokens = tl.arange(0, ROWS), tl.arange(0, WIDTH), tl.arange(0, PAGE_SIZE)
    first_head = head * GROUP
    query_places = query + batch * query_batch + (first_head + rows)[:, None] * query_head + columns[None, :]
    queries = tl.load(query_places, mask=(rows < GROUP)[:, None], other=0.0)
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


@triton.jit(do_not_specialize=["length_step", "heads"], do_not_specialize_on_alignment=["lengths", "starts", "counts"])
def join_kernel(
    partial, weight, out, lengths, starts, counts, out_batch, out_head, length_step, heads,
    PAGE_SIZE: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
    SPLIT_ROWS: tl.constexpr, BLOCK: tl.constexpr, HAS_STARTS: tl.constexpr, LISTED: tl.constexpr,
    DEPENDENT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    if DEPENDENT:
        wait_for_others(INTERPRETED)
    head, batch = tl.program_id(0), tl.program_id(1)
    splits = tl.arange(0, SPLIT_ROWS)
    begin, end, _seen_from, _seen_to = share(
        batch, head // GROUP, heads // GROUP, splits, lengths, length_step, starts, counts, PAGE_SIZE, SPLITS,
        HAS_STARTS, LISTED,
    )  # fmt: skip
    written = (splits < SPLITS) & (begin < end)  # the others left what the scratch held before
    row = (batch * heads + head).to(tl.int64) * SPLITS
    weights = tl.load(weight + row + splits, mask=written, other=float("-inf"))
    highest = tl.max(weights, 0)
    shares = tl.where(weights == float("-inf"), 0.0, tl.exp2(weights - highest))
    shares = shares / tl.maximum(tl.sum(shares, 0), LEAST)
    columns = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    places = partial + (row + splits)[:, None] * WIDTH + columns[None, :]
    found = tl.load(places, mask=written[:, None], other=0.0)
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
    `pages` alone if given. Nothing is allocated where `out`, `scratch` and `launch` are given; nothing waits for the
    device. `dependent` launches begin before the kernel in front of them has ended. Raises InvalidSetting for tensors
    that `supports_decode` refuses.
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
    flags |= {"WIDTH": width, "SPLITS": launch.splits, "num_warps": launch.warps, **overlapping(dependent)}
    counts, indices = (pages.counts, pages.indices) if pages else (None, None)
    with on_device(query):
        decode_kernel[(launch.splits, key_heads, batch)](
            query, key, value, scratch.partial, scratch.weight, lengths, starts, table, counts, indices,
            query.stride(0), query.stride(1), *_strides(key, table), *_strides(value, table),
            0 if table is None else table.stride(0), 0 if indices is None else indices.shape[-1], length_step, heads,
            width**-0.5 if scale is None else scale,
            ROWS=max(16, triton.next_power_of_2(group)), PAGED=table is not None, num_stages=launch.stages, **flags,
        )  # fmt: skip
        block = min(COLUMNS, width)
        join_kernel[(heads, batch, width // block)](
            scratch.partial, scratch.weight, out, lengths, starts, counts, out.stride(0), out.stride(1), length_step,
            heads, SPLIT_ROWS=max(2, triton.next_power_of_2(launch.splits)), BLOCK=block, **flags,
        )  # fmt: skip
    return out


def _strides(cache: torch.Tensor, table: torch.Tensor | None) -> tuple[int, int, int, int]:
    """Batch, page, token and head strides of a cache, or of a pool of pages."""
    first, token, head, _ = cache.stride()
    return (0, first, token, head) if table is not None else (first, PAGE * token, token, head)
