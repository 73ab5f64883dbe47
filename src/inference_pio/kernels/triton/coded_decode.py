"""Attention of one new token a row over int8 codes: they are read as they are, and their steps go into the queries.

Programs share the pages of a row as those of `decode` do, and its second kernel joins what they found. The plain truth
is `kernels.coded_decode.naive_coded_decode`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

import triton
import triton.language as tl
from inference_pio.compat import triton_interprets
from inference_pio.kernels.triton.decode import COLUMNS, DecodeScratch, join_kernel, share
from inference_pio.kernels.triton.launch import PAGE, DecodeLaunch, choose_decode_launch, device_limits, on_device
from inference_pio.kernels.triton.overlap import overlapping
from inference_pio.kernels.triton.support import require, supports_coded_decode

if TYPE_CHECKING:
    from inference_pio.kernels.coded_decode import CodedCacheView

LOG2_E = tl.constexpr(1.4426950408889634)
HIDDEN = tl.constexpr(-1.0e30)
LEAST = tl.constexpr(1.0e-30)
MIDDLE_CODE = tl.constexpr(127.5)
"""Codes less this are halves up to 127.5, all of which bfloat16 and float16 hold."""


@triton.jit
def taken(scores, values, visible, scale, summed, total, peak):
    """One page more of the softmax: what is summed, the weight of it, and the highest score, in powers of two."""
    scores = tl.where(visible[None, :], scores, HIDDEN)
    higher = tl.maximum(peak, tl.max(scores, 1) * scale)
    shares = tl.where(visible[None, :], tl.exp2(scores * scale - higher[:, None]), 0.0)
    shrink = tl.exp2(peak - higher)
    total = total * shrink + tl.sum(shares, 1)
    summed = tl.dot(shares.to(values.dtype), values, summed * shrink[:, None])
    return summed, total, higher


@triton.jit(
    do_not_specialize=["length_step", "heads", "room"], do_not_specialize_on_alignment=["lengths", "starts", "coded"]
)
def coded_decode_kernel(
    query, key_code, key_step, key_middle, value_code, value_step, value_middle, recent_key, recent_value,
    partial, weight, lengths, starts, coded, query_batch, query_head, recent_batch, recent_head, recent_token,
    length_step, heads, room, scale,
    PAGE_SIZE: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
    SHARING: tl.constexpr, HAS_STARTS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    split, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    key_heads = heads // GROUP
    begin, end, seen_from, seen_to, _busy = share(
        batch, head, key_heads, split, lengths, length_step, starts, starts, PAGE_SIZE, SPLITS, HAS_STARTS, False
    )
    if begin >= end:
        return
    held = tl.load(coded)
    rows, columns, tokens = tl.arange(0, ROWS), tl.arange(0, WIDTH), tl.arange(0, PAGE_SIZE)
    first_head = head * GROUP
    query_places = query + batch * query_batch + (first_head + rows)[:, None] * query_head + columns[None, :]
    queries = tl.load(query_places, mask=(rows < GROUP)[:, None], other=0.0)
    exact = queries.to(tl.float32)
    read: tl.constexpr = tl.float32 if INTERPRETED else query.dtype.element_ty  # it multiplies the bits of bfloat16
    queries = queries.to(read)

    GROUPS: tl.constexpr = WIDTH // SHARING
    groups, members = tl.arange(0, GROUPS), tl.arange(0, SHARING)
    row = (batch * key_heads + head).to(tl.int64) * room
    summed = tl.zeros([ROWS, WIDTH], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    scale2 = scale * LOG2_E
    for page in tl.range(begin, tl.minimum(end, held)):
        place = row + page
        visible = page * PAGE_SIZE + tokens >= seen_from
        code_places = place * PAGE_SIZE * WIDTH + tokens[:, None] * WIDTH + columns[None, :]
        keys = (tl.load(key_code + code_places).to(tl.float32) - MIDDLE_CODE).to(read)
        step = tl.load(key_step + place * WIDTH + columns).to(tl.float32)
        middle = tl.load(key_middle + place * WIDTH + columns).to(tl.float32)
        scores = tl.dot((exact * step[None, :]).to(read), tl.trans(keys))
        scores += tl.sum(exact * middle[None, :], 1)[:, None]
        grouped = tokens[:, None, None] * WIDTH + groups[None, :, None] * SHARING + members[None, None, :]
        codes = tl.load(value_code + place * PAGE_SIZE * WIDTH + grouped).to(tl.float32) - MIDDLE_CODE
        shared = place * PAGE_SIZE * GROUPS + tokens[:, None] * GROUPS + groups[None, :]
        steps = tl.load(value_step + shared, mask=visible[:, None], other=0.0).to(tl.float32)
        middles = tl.load(value_middle + shared, mask=visible[:, None], other=0.0).to(tl.float32)
        values = tl.reshape(codes * steps[:, :, None] + middles[:, :, None], [PAGE_SIZE, WIDTH]).to(read)
        summed, total, peak = taken(scores, values, visible, scale2, summed, total, peak)
    recent = batch * recent_batch + head * recent_head + tokens[:, None] * recent_token + columns[None, :]
    for page in tl.range(tl.maximum(begin, held), end):
        places = page * PAGE_SIZE + tokens
        visible = (places >= seen_from) & (places < seen_to)
        at = recent + (page - held) * PAGE_SIZE * recent_token
        keys = tl.load(recent_key + at, mask=visible[:, None], other=0.0).to(read)
        values = tl.load(recent_value + at, mask=visible[:, None], other=0.0).to(read)
        scores = tl.dot(queries, tl.trans(keys))
        summed, total, peak = taken(scores, values, visible, scale2, summed, total, peak)

    blind = peak < scale2 * (0.5 * HIDDEN)
    left = ((batch * heads + first_head + rows) * SPLITS + split).to(tl.int64)
    tl.store(partial + left[:, None] * WIDTH + columns[None, :], summed / tl.maximum(total, LEAST)[:, None],
             mask=(rows < GROUP)[:, None])  # fmt: skip
    tl.store(weight + left, tl.where(blind, float("-inf"), peak + tl.log2(total)), mask=rows < GROUP)


def coded_decode(
    query: torch.Tensor, cache: CodedCacheView, lengths: torch.Tensor, starts: torch.Tensor | None = None, *,
    scale: float | None = None, out: torch.Tensor | None = None, scratch: DecodeScratch | None = None,
    launch: DecodeLaunch | None = None,
) -> torch.Tensor:  # fmt: skip
    """`query` [B, H, D] over a cache with keys coded by channel of a page and values by groups of a token: [B, H, D].

    Row b sees tokens `starts[b]` to `lengths[b]`, both int32 on the device ([1] lengths serve all rows). Nothing is
    allocated where `out`, `scratch` and `launch` are given; nothing waits for the device. Raises InvalidSetting for
    what `supports_coded_decode` refuses.
    """
    require(supports_coded_decode(query, cache, lengths, starts))
    batch, heads, width = query.shape
    key_heads = cache.keys[0].shape[1]
    launch = launch or choose_decode_launch(device_limits(query.device), batch, key_heads, width, cache.tokens)
    out = torch.empty_like(query, memory_format=torch.contiguous_format) if out is None else out
    scratch = scratch or DecodeScratch.of(batch, heads, width, launch, query.device)
    length_step, recent = int(lengths.numel() > 1), cache.recent_keys
    flags = {"HAS_STARTS": starts is not None, "PAGE_SIZE": PAGE, "GROUP": heads // key_heads, "WIDTH": width}
    flags |= {"SPLITS": launch.splits, "num_warps": launch.warps}
    with on_device(query):
        coded_decode_kernel[(launch.splits, key_heads, batch)](
            query, *cache.keys, *cache.values, recent, cache.recent_values, scratch.partial, scratch.weight, lengths,
            starts, cache.pages, query.stride(0), query.stride(1), recent.stride(0), recent.stride(1),
            recent.stride(2), length_step, heads, cache.keys[0].shape[2], width**-0.5 if scale is None else scale,
            ROWS=max(16, triton.next_power_of_2(heads // key_heads)), SHARING=cache.value_form.group,
            INTERPRETED=triton_interprets(), num_stages=launch.stages, **flags,
        )  # fmt: skip
        block = min(COLUMNS, width)
        join_kernel[(heads, batch, width // block)](
            scratch.partial, scratch.weight, out, lengths, starts, None, out.stride(0), out.stride(1), length_step,
            heads, SPLIT_ROWS=max(2, triton.next_power_of_2(launch.splits)), BLOCK=block, LISTED=False, **flags,
            **overlapping(False),
        )  # fmt: skip
    return out
