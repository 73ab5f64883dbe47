"""One decode token a row: norm, rotation, cache and attention in one launch over what `rotate_and_store` reads.

Every program norms and turns the few queries that it needs by itself; the first of a key head turns the new key too,
keeps it and its value, and attends to them without reading them again. The first page of earlier tokens is asked for
before anything that the product in front has to finish. The plain truth is `kernels.rotated_decode.naive_rotated_decode`.
"""

from __future__ import annotations

import torch

import triton
import triton.language as tl
from inference_pio.kernels.triton.decode import (
    COLUMNS,
    HIDDEN,
    JOINED_NUMBERS,
    LEAST,
    LOG2_E,
    DecodeScratch,
    join_all,
    join_kernel,
)
from inference_pio.kernels.triton.launch import PAGE, DecodeLaunch, choose_decode_launch, device_limits, on_device
from inference_pio.kernels.triton.overlap import let_others_begin, may_overlap, overlapping, wait
from inference_pio.kernels.triton.rounding import held, rounded
from inference_pio.kernels.triton.support import require, supports_rotated_decode


@triton.jit
def where_to_turn(columns, WIDTH: tl.constexpr, TURNED: tl.constexpr, PAIRS: tl.constexpr):
    """For each column of the result: the column it comes from, the one turned into it, its angle, and the sign."""
    HALF: tl.constexpr = TURNED // 2
    first = columns < HALF
    inside = tl.where(first, columns, columns - HALF)
    if PAIRS:
        own, other = 2 * inside + tl.where(first, 0, 1), 2 * inside + tl.where(first, 1, 0)
        angle = inside
    else:
        own, other, angle = columns, tl.where(first, columns + HALF, columns - HALF), columns
    if TURNED < WIDTH:
        turns = columns < TURNED
        own, other, angle = tl.where(turns, own, columns), tl.where(turns, other, columns), tl.where(turns, angle, 0)
    return own, other, angle, tl.where(first, -1.0, 1.0)


@triton.jit
def turned_rows(
    places, there, weight, own, other, cos, sin, sign, columns, eps, DTYPE: tl.constexpr, WIDTH: tl.constexpr,
    TURNED: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    """Rows [R, WIDTH] at `places` [R, 1], of which some are `there`, normed and turned as `rotary.turned` does it."""
    one = tl.load(places + own[None, :], mask=there, other=0.0).to(tl.float32)
    another = tl.load(places + other[None, :], mask=there, other=0.0).to(tl.float32)
    if NORMED:
        weight_of_one = tl.load(weight + own).to(tl.float32)[None, :]
        weight_of_other = tl.load(weight + other).to(tl.float32)[None, :]
        scale = tl.rsqrt(tl.sum(one * one, 1) / WIDTH + eps)[:, None]
        one = rounded(rounded(one * scale, DTYPE) * weight_of_one, DTYPE)
        another = rounded(rounded(another * scale, DTYPE) * weight_of_other, DTYPE)
    turned = rounded(one * cos[None, :], DTYPE) + sign[None, :] * rounded(another * sin[None, :], DTYPE)
    if TURNED < WIDTH:
        turned = tl.where(columns[None, :] < TURNED, turned, one)
    return rounded(turned, DTYPE)


@triton.jit
def as_operand(tile, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """What a matrix product takes; the interpreter multiplies the bits of bfloat16."""
    return tile.to(tl.float32) if INTERPRETED else tile.to(DTYPE)


@triton.jit
def attend_page(queries, keys, values, visible, summed, total, peak, scale2, DTYPE: tl.constexpr,
                INTERPRETED: tl.constexpr):  # fmt: skip
    """What queries have found so far, and a page more."""
    scores = tl.dot(queries, tl.trans(as_operand(keys, DTYPE, INTERPRETED)))
    scores = tl.where(visible[None, :], scores, HIDDEN)
    higher = tl.maximum(peak, tl.max(scores, 1) * scale2)
    # a fused product is not rounded: minus its rounded twin it is no zero where HIDDEN is the peak
    shares = tl.where(visible[None, :], tl.exp2(scores * scale2 - higher[:, None]), 0.0)
    shrink = tl.exp2(peak - higher)
    summed = tl.dot(as_operand(shares, DTYPE, INTERPRETED), as_operand(values, DTYPE, INTERPRETED),
                    summed * shrink[:, None])  # fmt: skip
    return summed, total * shrink + tl.sum(shares, 1), higher


@triton.jit(
    do_not_specialize=["length_step", "heads"],
    do_not_specialize_on_alignment=["lengths", "positions", "starts", "arrived"],
)
def rotated_decode_kernel(
    qkv, key, value, cos, sin, positions, lengths, starts, query_norm, key_norm, partial, weight, arrived, out,
    qkv_row, key_batch, key_page, key_token, key_head, value_batch, value_page, value_token, value_head, cos_row,
    sin_row, out_batch, out_head, length_step, heads, scale, eps,
    PAGE_SIZE: tl.constexpr, GROUP: tl.constexpr, MEMBERS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    TURNED: tl.constexpr, PAIRS: tl.constexpr, QUERY_NORM: tl.constexpr, KEY_NORM: tl.constexpr, SPLITS: tl.constexpr,
    SPLIT_ROWS: tl.constexpr, AT_ONCE: tl.constexpr, HAS_STARTS: tl.constexpr, JOINED: tl.constexpr,
    LEADS: tl.constexpr, DEPENDENT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    split, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    DTYPE: tl.constexpr = key.dtype.element_ty
    if LEADS:
        let_others_begin(INTERPRETED)
    rows, columns, tokens = tl.arange(0, ROWS), tl.arange(0, WIDTH), tl.arange(0, PAGE_SIZE)
    key_heads = heads // GROUP
    first_head = head * GROUP
    # the pages of earlier tokens, as even as whole pages allow, over the programs that have any: the first ones
    held_tokens = tl.load(lengths + batch * length_step) - 1
    seen_from = 0
    if HAS_STARTS:
        seen_from = tl.maximum(tl.load(starts + batch), 0)
    first_page = seen_from // PAGE_SIZE
    pages = tl.maximum(tl.cdiv(held_tokens, PAGE_SIZE) - first_page, 0)
    busy = tl.maximum(tl.minimum(pages, SPLITS), 1)
    left = ((batch * heads + first_head + rows) * SPLITS + split).to(tl.int64)
    if split >= busy:
        if not JOINED:
            if DEPENDENT:  # the launch in front may still read what stands there
                wait(INTERPRETED)
            tl.store(weight + left, tl.full([ROWS], float("-inf"), tl.float32), mask=rows < GROUP)
        return
    begin, end = first_page + split * pages // busy, first_page + (split + 1) * pages // busy
    key_base = key + batch.to(tl.int64) * key_batch + head.to(tl.int64) * key_head
    value_base = value + batch.to(tl.int64) * value_batch + head.to(tl.int64) * value_head
    key_tile = key_base + tokens[:, None] * key_token + columns[None, :]
    value_tile = value_base + tokens[:, None] * value_token + columns[None, :]
    # what earlier steps have written, and this model's constants, are there whatever runs in front of this launch
    places = begin * PAGE_SIZE + tokens
    visible = (places >= seen_from) & (places < held_tokens) & (begin < end)
    keys = tl.load(key_tile + begin * key_page, mask=visible[:, None], other=0.0)
    values = tl.load(value_tile + begin * value_page, mask=visible[:, None], other=0.0)
    own, other, angle, sign = where_to_turn(columns, WIDTH, TURNED, PAIRS)
    turn = tl.load(positions + batch).to(tl.int64)
    cos_here = tl.load(cos + turn * cos_row + angle).to(tl.float32)
    sin_here = tl.load(sin + turn * sin_row + angle).to(tl.float32)
    if DEPENDENT:
        wait(INTERPRETED)

    source = qkv + batch.to(tl.int64) * qkv_row
    members = tl.arange(0, MEMBERS)[:, None]
    queries = turned_rows(
        source + (first_head + members) * WIDTH, members < GROUP, query_norm, own, other, cos_here, sin_here, sign,
        columns, eps, DTYPE, WIDTH, TURNED, QUERY_NORM,
    )  # fmt: skip
    queries = tl.reshape(tl.broadcast_to(queries[None], [ROWS // MEMBERS, MEMBERS, WIDTH]), [ROWS, WIDTH])
    scale2 = scale * LOG2_E
    summed = tl.zeros([ROWS, WIDTH], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    if split == 0:
        newest = held_tokens.to(tl.int64)  # of this row: its page and its place in it
        one = tl.arange(0, 1)[:, None]
        new_key = turned_rows(
            source + (heads + head) * WIDTH + one, one == 0, key_norm, own, other, cos_here, sin_here, sign, columns,
            eps, DTYPE, WIDTH, TURNED, KEY_NORM,
        )  # fmt: skip
        new_value = tl.load(source + (heads + key_heads + head) * WIDTH + columns)
        tl.store(key_base + newest * key_token + columns[None, :], held(new_key, DTYPE))
        tl.store(value_base + newest * value_token + columns, new_value)
        peak = tl.sum(queries * new_key, 1) * scale2
        total += 1.0
        summed += new_value.to(tl.float32)[None, :]
    queries = as_operand(queries, DTYPE, INTERPRETED)
    if begin < end:
        summed, total, peak = attend_page(
            queries, keys, values, visible, summed, total, peak, scale2, DTYPE, INTERPRETED
        )  # fmt: skip
    for page in tl.range(begin + 1, end):
        places = page * PAGE_SIZE + tokens
        visible = (places >= seen_from) & (places < held_tokens)
        keys = tl.load(key_tile + page * key_page, mask=visible[:, None], other=0.0)
        values = tl.load(value_tile + page * value_page, mask=visible[:, None], other=0.0)
        summed, total, peak = attend_page(
            queries, keys, values, visible, summed, total, peak, scale2, DTYPE, INTERPRETED
        )  # fmt: skip

    out_place = out + batch * out_batch + first_head * out_head
    if JOINED and (busy == 1):
        found = summed / tl.maximum(total, LEAST)[:, None]
        tl.store(out_place + rows[:, None] * out_head + columns[None, :], held(found, out.dtype.element_ty),
                 mask=(rows < GROUP)[:, None])  # fmt: skip
        return
    blind = peak < scale2 * (0.5 * HIDDEN)
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


def rotated_decode(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    lengths: torch.Tensor,
    starts: torch.Tensor | None = None,
    *,
    heads: int,
    key_heads: int,
    query_norm: torch.Tensor | None = None,
    key_norm: torch.Tensor | None = None,
    eps: float = 0.0,
    interleaved: bool = False,
    scale: float | None = None,
    out: torch.Tensor | None = None,
    scratch: DecodeScratch | None = None,
    launch: DecodeLaunch | None = None,
    dependent: bool = False,
) -> torch.Tensor:
    """What the queries of `qkv` [M, (Hq + 2 Hk) D] find, normed and turned, among tokens `starts[m]` to `lengths[m]` of
    `keys` and `values` [M, capacity, Hk, D], of which the last are those of `qkv`, written here: [M, Hq, D].

    `dependent`: it may begin before the launch in front has ended; what earlier launches wrote into cache, tables and
    counts must have ended by then. Nothing is allocated where `out`, `scratch` and `launch` are given; nothing waits
    for the device. Raises InvalidSetting for tensors that `supports_rotated_decode` refuses.
    """
    require(supports_rotated_decode(
        qkv, keys, values, cos, sin, positions, lengths, starts, heads, (query_norm, key_norm)
    ))  # fmt: skip
    rows, capacity, _, width = keys.shape
    launch = launch or choose_decode_launch(device_limits(qkv.device), rows, key_heads, width, capacity)
    out = qkv.new_empty(rows, heads, width) if out is None else out
    scratch = scratch or DecodeScratch.of(rows, heads, width, launch, qkv.device)
    group = heads // key_heads
    split_rows, members = (max(2, triton.next_power_of_2(number)) for number in (launch.splits, group))
    joined, at_once = scratch.arrived is not None, max(1, min(split_rows, JOINED_NUMBERS // (members * width)))
    overlaps = may_overlap(qkv.device)
    step = int(lengths.numel() > 1)
    warps = launch.warps * (1 if width <= 128 else 2)  # a page in registers, of keys and of values
    shared = {"PAGE_SIZE": PAGE, "GROUP": group, "WIDTH": width, "SPLITS": launch.splits, "SPLIT_ROWS": split_rows,
              "HAS_STARTS": starts is not None}  # fmt: skip
    with on_device(qkv):
        rotated_decode_kernel[(launch.splits, key_heads, rows)](
            qkv, keys, values, cos, sin, positions, lengths, starts, query_norm, key_norm, scratch.partial,
            scratch.weight, scratch.arrived, out, qkv.stride(0), *_strides(keys), *_strides(values), cos.stride(0),
            sin.stride(0), out.stride(0), out.stride(1), step, heads, width**-0.5 if scale is None else scale, eps,
            MEMBERS=members, ROWS=max(16, members), TURNED=cos.shape[-1], PAIRS=interleaved,
            QUERY_NORM=query_norm is not None, KEY_NORM=key_norm is not None, AT_ONCE=at_once, JOINED=joined,
            LEADS=overlaps,
            num_stages=launch.stages, num_warps=warps, **shared, **overlapping(dependent),
        )  # fmt: skip
        if not joined:
            block = min(COLUMNS, width)
            join_kernel[(heads, rows, width // block)](
                scratch.partial, scratch.weight, out, lengths, starts, None, out.stride(0), out.stride(1), step, heads,
                BLOCK=block, LISTED=False, ALL=True, num_warps=launch.warps, **shared, **overlapping(overlaps),
            )  # fmt: skip
    return out


def _strides(cache: torch.Tensor) -> tuple[int, int, int, int]:
    """Batch, page, token and head strides of a cache."""
    first, token, head, _ = cache.stride()
    return first, PAGE * token, token, head
