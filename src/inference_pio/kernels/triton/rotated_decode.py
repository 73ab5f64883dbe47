"""One decode token a row: norm, rotation, cache and attention in one launch over what `rotate_and_store` reads.

Every program norms and turns the few queries that it needs by itself; the first of a key head turns the new key too,
keeps it and its value, and attends to them without reading them again. The first page of earlier tokens is asked for
before anything that the product in front has to finish. The plain truth is
`kernels.rotated_decode.naive_rotated_decode`.
"""

from __future__ import annotations

import torch

import triton
import triton.language as tl
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.triton.attention_support import supports_rotated_decode
from inference_pio.kernels.triton.decode import (
    COLUMNS,
    HIDDEN,
    LEAST,
    LOG2_E,
    DecodeScratch,
    join_all,
    join_kernel,
    strides,
)
from inference_pio.kernels.triton.launch import PAGE, DecodeLaunch, choose_rotated_launch, device_limits, on_device
from inference_pio.kernels.triton.overlap import let_others_begin, may_overlap, overlapping, wait
from inference_pio.kernels.triton.rounding import held, rounded
from inference_pio.kernels.triton.support import require

JOINED_AT_ONCE = 16384
"""Numbers that the last program of a key head holds of what the others left: 128 a thread, more than `decode` holds,
whose programs are as many on a multiprocessor as registers allow."""

FEWEST_SPLITS = 2
"""One program for the new token, and one for those before."""


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
def read_rows(places, there, own, other):
    """Rows [R, WIDTH] at `places` [R, 1], where they are `there`: what each column is, and what is turned into it."""
    one = tl.load(places + own[None, :], mask=there, other=0.0).to(tl.float32)
    return one, tl.load(places + other[None, :], mask=there, other=0.0).to(tl.float32)


@triton.jit
def read_factors(weight, own, other, NORMED: tl.constexpr):
    """The factors of a norm for both, [1, WIDTH] each."""
    if NORMED:
        return tl.load(weight + own).to(tl.float32)[None, :], tl.load(weight + other).to(tl.float32)[None, :]
    else:
        return tl.full([1, 1], 1.0, tl.float32), tl.full([1, 1], 1.0, tl.float32)


@triton.jit
def turned_rows(
    one, another, factor, other_factor, cos, sin, sign, columns, eps, DTYPE: tl.constexpr, WIDTH: tl.constexpr,
    TURNED: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    """Rows that were read, normed and turned, rounded wherever `rotary.turned` rounds."""
    if NORMED:
        scale = tl.rsqrt(tl.sum(one * one, 1) / WIDTH + eps)[:, None]
        one = rounded(rounded(one * scale, DTYPE) * factor, DTYPE)
        another = rounded(rounded(another * scale, DTYPE) * other_factor, DTYPE)
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


@triton.jit
def join_at_once(
    partial, weight, out, row, out_place, out_head, splits, GROUP: tl.constexpr, MEMBERS: tl.constexpr,
    WIDTH: tl.constexpr, SPLITS: tl.constexpr, SPLIT_ROWS: tl.constexpr,
):  # fmt: skip
    """`decode.join_all` where a program holds all that was left: sums are asked for before their weights have come."""
    member, split, columns = tl.arange(0, MEMBERS), tl.arange(0, SPLIT_ROWS), tl.arange(0, WIDTH)
    places = row + tl.minimum(member, GROUP - 1)[:, None] * SPLITS + split[None, :]
    written = (member < GROUP)[:, None] & (split < splits)[None, :]
    weights = tl.load(weight + places, mask=written, other=float("-inf"), cache_modifier=".cg")
    found = tl.load(
        partial + places[:, :, None] * WIDTH + columns[None, None, :], mask=written[:, :, None], other=0.0,
        cache_modifier=".cg",
    )  # fmt: skip
    highest = tl.maximum(tl.max(weights, 1), HIDDEN)
    shares = tl.exp2(weights - highest[:, None])
    shares = shares / tl.maximum(tl.sum(shares, 1), LEAST)[:, None]
    joined = tl.sum(found * shares[:, :, None], 1)
    tl.store(out_place + member[:, None] * out_head + columns[None, :], joined.to(out.dtype.element_ty),
             mask=(member < GROUP)[:, None])  # fmt: skip


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
    if LEADS and not JOINED:  # the launch that joins reads nothing before this one has ended
        let_others_begin(INTERPRETED)
    # what earlier steps have written is there, since a step's first launch has waited for it (see `overlap`), and so
    # are this model's constants
    turn = tl.load(positions + batch).to(tl.int64)
    held_tokens = tl.load(lengths + batch * length_step) - 1
    seen_from = 0
    if HAS_STARTS:
        seen_from = tl.maximum(tl.load(starts + batch), 0)
    rows, columns, tokens = tl.arange(0, ROWS), tl.arange(0, WIDTH), tl.arange(0, PAGE_SIZE)
    own, other, angle, sign = where_to_turn(columns, WIDTH, TURNED, PAIRS)
    cos_here = tl.load(cos + turn * cos_row + angle).to(tl.float32)
    sin_here = tl.load(sin + turn * sin_row + angle).to(tl.float32)
    key_heads = heads // GROUP
    first_head = head * GROUP
    # the new token is the first program's; the pages of earlier ones are shared by as many others as there are pages
    first_page = seen_from // PAGE_SIZE
    pages = tl.maximum(tl.cdiv(held_tokens, PAGE_SIZE) - first_page, 0)
    sharing = tl.minimum(pages, SPLITS - 1)
    busy = sharing + 1
    left = ((batch * heads + first_head + rows) * SPLITS + split).to(tl.int64)
    if split >= busy:
        if not JOINED:
            if DEPENDENT:  # the launch in front may still read what stands there
                wait(INTERPRETED)
            tl.store(weight + left, tl.full([ROWS], float("-inf"), tl.float32), mask=rows < GROUP)
        return
    number, sharing = tl.maximum(split - 1, 0), tl.maximum(sharing, 1)
    begin, end = first_page + number * pages // sharing, first_page + (number + 1) * pages // sharing
    key_base = key + batch.to(tl.int64) * key_batch + head.to(tl.int64) * key_head
    value_base = value + batch.to(tl.int64) * value_batch + head.to(tl.int64) * value_head
    # 512K tokens of 32 heads of 128 are 2**31 numbers
    key_page, value_page = key_page.to(tl.int64), value_page.to(tl.int64)
    key_tile = key_base + tokens[:, None] * key_token + columns[None, :]
    value_tile = value_base + tokens[:, None] * value_token + columns[None, :]
    places = begin * PAGE_SIZE + tokens
    visible = (places >= seen_from) & (places < held_tokens) & (split > 0)
    keys = tl.load(key_tile + begin * key_page, mask=visible[:, None], other=0.0)
    values = tl.load(value_tile + begin * value_page, mask=visible[:, None], other=0.0)
    factor, other_factor = read_factors(query_norm, own, other, QUERY_NORM)
    key_factor, other_key_factor = read_factors(key_norm, own, other, KEY_NORM)
    if DEPENDENT:
        wait(INTERPRETED)
    if LEADS and JOINED:  # what stood in front has left its room: the product behind may ask for its weights
        let_others_begin(INTERPRETED)

    source = qkv + batch.to(tl.int64) * qkv_row
    members, only = tl.arange(0, MEMBERS)[:, None], tl.arange(0, 1)[:, None]
    one, another = read_rows(source + (first_head + members) * WIDTH, members < GROUP, own, other)
    of_key, other_of_key = read_rows(source + (heads + head) * WIDTH + only, only == split, own, other)
    new_value = tl.load(source + (heads + key_heads + head) * WIDTH + columns, mask=(columns >= 0) & (split == 0))
    queries = turned_rows(
        one, another, factor, other_factor, cos_here, sin_here, sign, columns, eps, DTYPE, WIDTH, TURNED, QUERY_NORM
    )  # fmt: skip
    queries = tl.reshape(tl.broadcast_to(queries[None], [ROWS // MEMBERS, MEMBERS, WIDTH]), [ROWS, WIDTH])
    scale2 = scale * LOG2_E
    summed = tl.zeros([ROWS, WIDTH], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    if split == 0:
        newest = held_tokens.to(tl.int64)
        new_key = turned_rows(
            of_key, other_of_key, key_factor, other_key_factor, cos_here, sin_here, sign, columns, eps, DTYPE, WIDTH,
            TURNED, KEY_NORM,
        )  # fmt: skip
        tl.store(key_base + newest * key_token + columns[None, :], held(new_key, DTYPE))
        tl.store(value_base + newest * value_token + columns, new_value)
        peak = tl.sum(queries * new_key, 1) * scale2
        total += 1.0
        summed += new_value.to(tl.float32)[None, :]
    else:
        operand = as_operand(queries, DTYPE, INTERPRETED)
        summed, total, peak = attend_page(
            operand, keys, values, visible, summed, total, peak, scale2, DTYPE, INTERPRETED
        )  # fmt: skip
        for page in tl.range(begin + 1, end):
            places = page * PAGE_SIZE + tokens
            visible = (places >= seen_from) & (places < held_tokens)
            keys = tl.load(key_tile + page * key_page, mask=visible[:, None], other=0.0)
            values = tl.load(value_tile + page * value_page, mask=visible[:, None], other=0.0)
            summed, total, peak = attend_page(
                operand, keys, values, visible, summed, total, peak, scale2, DTYPE, INTERPRETED
            )  # fmt: skip

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
            out_place = out + batch * out_batch + first_head * out_head
            if SPLIT_ROWS <= AT_ONCE:
                join_at_once(partial, weight, out, row, out_place, out_head, busy, GROUP, MEMBERS, WIDTH, SPLITS,
                             SPLIT_ROWS)  # fmt: skip
            else:
                join_all(partial, weight, out, row, out_place, out_head, busy, GROUP, MEMBERS, WIDTH, SPLITS,
                         SPLIT_ROWS, AT_ONCE)  # fmt: skip


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
    for the device. Raises InvalidSetting for tensors that `supports_rotated_decode` refuses, and for one split.
    """
    require(supports_rotated_decode(
        qkv, keys, values, cos, sin, positions, lengths, starts, heads, (query_norm, key_norm)
    ))  # fmt: skip
    rows, capacity, _, width = keys.shape
    launch = launch or choose_rotated_launch(device_limits(qkv.device), rows, key_heads, width, capacity)
    if launch.splits < FEWEST_SPLITS:
        raise InvalidSetting(f"{launch} leaves no program for earlier tokens: it takes {FEWEST_SPLITS} splits or more.")
    out = qkv.new_empty(rows, heads, width) if out is None else out
    scratch = scratch or DecodeScratch.of(rows, heads, width, launch, qkv.device)
    group = heads // key_heads
    split_rows, members = (max(2, triton.next_power_of_2(number)) for number in (launch.splits, group))
    joined, at_once = scratch.arrived is not None, max(1, min(split_rows, JOINED_AT_ONCE // (members * width)))
    overlaps = may_overlap(qkv.device)
    step = int(lengths.numel() > 1)
    shared = {"PAGE_SIZE": PAGE, "GROUP": group, "WIDTH": width, "SPLITS": launch.splits, "SPLIT_ROWS": split_rows,
              "HAS_STARTS": starts is not None, "num_warps": launch.warps}  # fmt: skip
    with on_device(qkv):
        rotated_decode_kernel[(launch.splits, key_heads, rows)](
            qkv, keys, values, cos, sin, positions, lengths, starts, query_norm, key_norm, scratch.partial,
            scratch.weight, scratch.arrived, out, qkv.stride(0), *strides(keys), *strides(values), cos.stride(0),
            sin.stride(0), out.stride(0), out.stride(1), step, heads, width**-0.5 if scale is None else scale, eps,
            MEMBERS=members, ROWS=max(16, members), TURNED=cos.shape[-1], PAIRS=interleaved,
            QUERY_NORM=query_norm is not None, KEY_NORM=key_norm is not None, AT_ONCE=at_once, JOINED=joined,
            LEADS=overlaps,
            num_stages=launch.stages, **shared, **overlapping(dependent),
        )  # fmt: skip
        if not joined:
            block = min(COLUMNS, width)
            join_kernel[(heads, rows, width // block)](
                scratch.partial, scratch.weight, out, lengths, starts, None, out.stride(0), out.stride(1), step, heads,
                BLOCK=block, LISTED=False, ALL=True, **shared, **overlapping(overlaps),
            )  # fmt: skip
    return out
