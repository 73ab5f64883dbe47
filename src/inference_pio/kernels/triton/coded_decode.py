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
from inference_pio.kernels.triton.attention_support import supports_coded_decode
from inference_pio.kernels.triton.decode import COLUMNS, DecodeScratch, join_kernel
from inference_pio.kernels.triton.launch import PAGE, CodedLaunch, choose_coded_launch, device_limits, on_device
from inference_pio.kernels.triton.overlap import let_others_begin, may_overlap, overlapping
from inference_pio.kernels.triton.support import require

if TYPE_CHECKING:
    from inference_pio.kernels.coded_decode import CodedCacheView

LOG2_E = tl.constexpr(1.4426950408889634)
HIDDEN = tl.constexpr(-1.0e30)
LEAST = tl.constexpr(1.0e-30)
MIDDLE_CODE = tl.constexpr(127.5)
"""What codes are counted from. Codes less 128 are whole numbers, all of which float16 holds: half a step is added to
what lies in the middle instead."""
CODES_OF_A_WORD = tl.constexpr(4)
JOINING_WARPS = 4


@triton.jit
def numbers(words, s0, s1, s2, s3, m0, m1, m2, m3, INTERPRETED: tl.constexpr):
    """Four tensors: what the first codes of all words stand for, the second ones, and so on, in float16 (float32 in the
    interpreter), given steps and what lies half a step above the middle, in float16."""
    if INTERPRETED:
        return (
            ((words & 0xFF).to(tl.float32) - 128) * s0 + m0, (((words >> 8) & 0xFF).to(tl.float32) - 128) * s1 + m1,
            (((words >> 16) & 0xFF).to(tl.float32) - 128) * s2 + m2,
            (((words >> 24) & 0xFF).to(tl.float32) - 128) * s3 + m3,
        )  # fmt: skip
    else:  # two at a time, by four instructions: their bits behind those of 1024, less 1152, times the step
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 pair, less;
            mov.b32 less, 0xE480E480;
            prmt.b32 pair, $4, $5, 0x0400;
            lop3.b32 pair, pair, 0x00FF00FF, 0x64006400, 0xEA;
            add.rn.f16x2 pair, pair, less;
            fma.rn.f16x2 $0, pair, $6, $10;
            prmt.b32 pair, $4, $5, 0x0501;
            lop3.b32 pair, pair, 0x00FF00FF, 0x64006400, 0xEA;
            add.rn.f16x2 pair, pair, less;
            fma.rn.f16x2 $1, pair, $7, $11;
            prmt.b32 pair, $4, $5, 0x0602;
            lop3.b32 pair, pair, 0x00FF00FF, 0x64006400, 0xEA;
            add.rn.f16x2 pair, pair, less;
            fma.rn.f16x2 $2, pair, $8, $12;
            prmt.b32 pair, $4, $5, 0x0703;
            lop3.b32 pair, pair, 0x00FF00FF, 0x64006400, 0xEA;
            add.rn.f16x2 pair, pair, less;
            fma.rn.f16x2 $3, pair, $9, $13;
            }
            """,
            "=r,=r,=r,=r,r,r,r,r,r,r,r,r,r,r", [words, s0, s1, s2, s3, m0, m1, m2, m3],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16), is_pure=True, pack=2,
        )  # fmt: skip


@triton.jit
def four(places, seen):
    """What lies at four neighbouring places each, in float32."""
    return (
        tl.load(places, mask=seen, other=0.0).to(tl.float32), tl.load(places + 1, mask=seen, other=0.0).to(tl.float32),
        tl.load(places + 2, mask=seen, other=0.0).to(tl.float32),
        tl.load(places + 3, mask=seen, other=0.0).to(tl.float32),
    )  # fmt: skip


@triton.jit
def row_of(word, BFLOAT16: tl.constexpr, TYPE: tl.constexpr):
    """The lowest two bytes as a number, in a row of a tile."""
    if BFLOAT16:
        return (word.to(tl.int32) << 16).to(tl.float32, bitcast=True).to(TYPE)[None, :]
    else:
        return word.to(tl.int16).to(tl.float16, bitcast=True).to(TYPE)[None, :]


@triton.jit
def four_of(words, BFLOAT16: tl.constexpr, TYPE: tl.constexpr):
    """The four numbers of bfloat16 or float16 that each word of eight bytes holds."""
    return (
        row_of(words, BFLOAT16, TYPE), row_of(words >> 16, BFLOAT16, TYPE), row_of(words >> 32, BFLOAT16, TYPE),
        row_of(words >> 48, BFLOAT16, TYPE),
    )  # fmt: skip


@triton.jit
def most(x):
    return tl.max(tl.abs(x), 1)


@triton.jit
def products(q0, q1, q2, q3, k0, k1, k2, k3, TYPE: tl.constexpr):
    """Scores [ROWS, tokens] of queries and keys, each a fourth of the channels."""
    scores = tl.dot(q0.to(TYPE), tl.trans(k0.to(TYPE)))
    scores = tl.dot(q1.to(TYPE), tl.trans(k1.to(TYPE)), scores)
    scores = tl.dot(q2.to(TYPE), tl.trans(k2.to(TYPE)), scores)
    return tl.dot(q3.to(TYPE), tl.trans(k3.to(TYPE)), scores)


@triton.jit
def weighed(scores, visible, scale, total, peak):
    """One step more of the softmax: the shares, what earlier ones shrink to, the sum of all, the highest score."""
    scores = tl.where(visible[None, :], scores * scale[:, None], HIDDEN)
    higher = tl.maximum(peak, tl.max(scores, 1))
    shares = tl.where(visible[None, :], tl.exp2(scores - higher[:, None]), 0.0)
    shrink = tl.exp2(peak - higher)
    return shares, shrink[:, None], total * shrink + tl.sum(shares, 1), higher


@triton.jit
def flat(values, TOKENS: tl.constexpr, WORDS: tl.constexpr, TYPE: tl.constexpr):
    return tl.reshape(values, [TOKENS, WORDS]).to(TYPE)


@triton.jit
def leave_weight(weight, left, total, peak, rows, GROUP: tl.constexpr):
    """What the sums of a split weigh; nothing where no token was seen."""
    blind = peak < 0.5 * HIDDEN
    tl.store(weight + left, tl.where(blind, float("-inf"), peak + tl.log2(total)), mask=rows < GROUP)


@triton.jit
def over_recent(
    query_places, recent_key, recent_value, partial, weight, left, recent_token, held, seen_from, seen_to, scale,
    GROUP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, PAGE_SIZE: tl.constexpr,
    TYPE: tl.constexpr,
):  # fmt: skip
    """The last tokens, which are not coded yet."""
    rows, columns, tokens = tl.arange(0, ROWS), tl.arange(0, WIDTH), tl.arange(0, TOKENS)
    own = (rows < GROUP)[:, None]
    queries = tl.load(query_places[:, None] + columns[None, :], mask=own, other=0.0).to(tl.float32)
    largest = tl.maximum(most(queries), LEAST)
    queries = (queries / largest[:, None]).to(TYPE)
    summed = tl.zeros([ROWS, WIDTH], tl.float32)
    total, peak = tl.zeros([ROWS], tl.float32), tl.full([ROWS], float("-inf"), tl.float32)
    for first in tl.range(held * PAGE_SIZE, seen_to, TOKENS):
        visible = (first + tokens >= seen_from) & (first + tokens < seen_to)
        at = (first - held * PAGE_SIZE + tokens)[:, None] * recent_token + columns[None, :]
        keys = tl.load(recent_key + at, mask=visible[:, None], other=0.0).to(TYPE)
        values = tl.load(recent_value + at, mask=visible[:, None], other=0.0).to(TYPE)
        scores = tl.dot(queries, tl.trans(keys))
        shares, shrink, total, peak = weighed(scores, visible, largest * scale * LOG2_E, total, peak)
        summed = tl.dot(shares.to(TYPE), values, summed * shrink)
    tl.store(partial + left[:, None] * WIDTH + columns[None, :], summed / tl.maximum(total, LEAST)[:, None], mask=own)
    leave_weight(weight, left, total, peak, rows, GROUP)


@triton.jit
def over_codes(
    query_places, key_code, key_step, key_middle, value_code, value_step, value_middle, partial, weight, left, row,
    begin, end, seen_from, scale,
    GROUP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, PAGE_SIZE: tl.constexpr,
    SHARING: tl.constexpr, TYPE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Pages of codes, from begin to end."""
    WORDS: tl.constexpr = WIDTH // CODES_OF_A_WORD
    GROUPS: tl.constexpr = WIDTH // SHARING
    PARTS: tl.constexpr = PAGE_SIZE // TOKENS
    rows, words, tokens = tl.arange(0, ROWS), tl.arange(0, WORDS), tl.arange(0, TOKENS)
    groups, members = tl.arange(0, GROUPS), tl.arange(0, WORDS // GROUPS)
    channels = words * CODES_OF_A_WORD
    own = (rows < GROUP)[:, None]
    q0, q1, q2, q3 = four(query_places[:, None] + channels[None, :], own)
    # queries over their largest number: float16 holds them then, whatever they are
    largest = tl.maximum(tl.maximum(most(q0), most(q1)), tl.maximum(most(q2), most(q3)))
    largest = tl.maximum(largest, LEAST)
    q0, q1 = (q0 / largest[:, None]).to(TYPE), (q1 / largest[:, None]).to(TYPE)
    q2, q3 = (q2 / largest[:, None]).to(TYPE), (q3 / largest[:, None]).to(TYPE)
    s0 = tl.zeros([ROWS, WORDS], tl.float32)
    s1, s2, s3 = s0, s0, s0
    total, peak = tl.zeros([ROWS], tl.float32), tl.full([ROWS], float("-inf"), tl.float32)
    for part in tl.range(begin * PARTS, end * PARTS):
        place, first = row + part // PARTS, part % PARTS * TOKENS
        at = place * PAGE_SIZE + first + tokens
        visible = part * TOKENS + tokens >= seen_from
        t0, t1, t2, t3 = four_of(tl.load(key_step + place * WORDS + words), True, TYPE)
        m0, m1, m2, m3 = four_of(tl.load(key_middle + place * WORDS + words), False, TYPE)
        key_codes = tl.load(key_code + at[:, None] * WORDS + words[None, :])
        k0, k1, k2, k3 = numbers(
            key_codes, t0, t1, t2, t3, m0 + 0.5 * t0, m1 + 0.5 * t1, m2 + 0.5 * t2, m3 + 0.5 * t3, INTERPRETED
        )
        scores = products(q0, q1, q2, q3, k0, k1, k2, k3, TYPE)
        grouped = at[:, None, None] * WORDS + groups[None, :, None] * (WORDS // GROUPS) + members[None, None, :]
        shared = at[:, None] * GROUPS + groups[None, :]
        steps = tl.load(value_step + shared, mask=visible[:, None], other=0.0)[:, :, None]
        value_middles = tl.load(value_middle + shared, mask=visible[:, None], other=0.0)[:, :, None]
        steps, value_middles = steps.to(TYPE), value_middles.to(TYPE)
        value_middles += 0.5 * steps
        v0, v1, v2, v3 = numbers(
            tl.load(value_code + grouped), steps, steps, steps, steps, value_middles, value_middles, value_middles,
            value_middles, INTERPRETED,
        )  # fmt: skip
        shares, shrink, total, peak = weighed(scores, visible, largest * scale * LOG2_E, total, peak)
        shares = shares.to(TYPE)
        s0 = tl.dot(shares, flat(v0, TOKENS, WORDS, TYPE), s0 * shrink)
        s1 = tl.dot(shares, flat(v1, TOKENS, WORDS, TYPE), s1 * shrink)
        s2 = tl.dot(shares, flat(v2, TOKENS, WORDS, TYPE), s2 * shrink)
        s3 = tl.dot(shares, flat(v3, TOKENS, WORDS, TYPE), s3 * shrink)
    least = tl.maximum(total, LEAST)[:, None]
    found = partial + left[:, None] * WIDTH + channels[None, :]
    tl.store(found, s0 / least, mask=own)
    tl.store(found + 1, s1 / least, mask=own)
    tl.store(found + 2, s2 / least, mask=own)
    tl.store(found + 3, s3 / least, mask=own)
    leave_weight(weight, left, total, peak, rows, GROUP)


@triton.jit(
    do_not_specialize=["length_step", "heads", "room"], do_not_specialize_on_alignment=["lengths", "starts", "coded"]
)
def coded_decode_kernel(
    query, key_code, key_step, key_middle, value_code, value_step, value_middle, recent_key, recent_value,
    partial, weight, lengths, starts, coded, query_batch, query_head, recent_batch, recent_head, recent_token,
    length_step, heads, room, scale,
    PAGE_SIZE: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
    SHARING: tl.constexpr, TOKENS: tl.constexpr, HAS_STARTS: tl.constexpr, LEADS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    # The first split takes the last tokens, which are read in another way, the others share the pages of codes.
    split, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if LEADS:
        let_others_begin(INTERPRETED)
    TYPE: tl.constexpr = tl.float32 if INTERPRETED else tl.float16
    rows, held = tl.arange(0, ROWS), tl.load(coded)
    seen_to, seen_from = tl.load(lengths + batch * length_step), 0
    if HAS_STARTS:
        seen_from = tl.maximum(tl.load(starts + batch), 0)
    first_head = head * GROUP
    query_places = query + batch * query_batch + (first_head + rows) * query_head
    left = ((batch * heads + first_head + rows) * SPLITS + split).to(tl.int64)
    if split == 0:
        recent = batch * recent_batch + head * recent_head
        over_recent(
            query_places, recent_key + recent, recent_value + recent, partial, weight, left, recent_token, held,
            seen_from, seen_to, scale, GROUP, ROWS, WIDTH, TOKENS, PAGE_SIZE, TYPE,
        )  # fmt: skip
    else:
        last = tl.minimum(held, tl.cdiv(seen_to, PAGE_SIZE))
        first = tl.minimum(seen_from // PAGE_SIZE, last)
        begin = first + (split - 1) * (last - first) // (SPLITS - 1)
        end = first + split * (last - first) // (SPLITS - 1)
        row = (batch * (heads // GROUP) + head).to(tl.int64) * room
        over_codes(
            query_places, key_code, key_step, key_middle, value_code, value_step, value_middle, partial, weight, left,
            row, begin, end, seen_from, scale, GROUP, ROWS, WIDTH, TOKENS, PAGE_SIZE, SHARING, TYPE, INTERPRETED,
        )  # fmt: skip


def coded_decode(
    query: torch.Tensor, cache: CodedCacheView, lengths: torch.Tensor, starts: torch.Tensor | None = None, *,
    scale: float | None = None, out: torch.Tensor | None = None, scratch: DecodeScratch | None = None,
    launch: CodedLaunch | None = None,
) -> torch.Tensor:  # fmt: skip
    """`query` [B, H, D] over a cache with keys coded by channel of a page and values by groups of a token: [B, H, D].

    Row b sees tokens `starts[b]` to `lengths[b]`, both int32 on the device ([1] lengths serve all rows). Nothing is
    allocated where `out`, `scratch` and `launch` are given; nothing waits for the device. Raises InvalidSetting for
    what `supports_coded_decode` refuses.
    """
    require(supports_coded_decode(query, cache, lengths, starts))
    batch, heads, width = query.shape
    key_heads = cache.keys[0].shape[1]
    launch = launch or choose_coded_launch(device_limits(query.device), batch, key_heads, width, cache.tokens)
    out = torch.empty_like(query, memory_format=torch.contiguous_format) if out is None else out
    scratch = scratch or DecodeScratch.of(batch, heads, width, launch, query.device)
    length_step, recent = int(lengths.numel() > 1), cache.recent_keys
    flags = {"HAS_STARTS": starts is not None, "PAGE_SIZE": PAGE, "GROUP": heads // key_heads, "WIDTH": width}
    flags |= {"SPLITS": launch.splits}
    overlaps = may_overlap(query.device)
    with on_device(query):
        coded_decode_kernel[(launch.splits, key_heads, batch)](
            query, *_key_words(cache.keys), *_in_words(cache.values), recent, cache.recent_values, scratch.partial,
            scratch.weight, lengths, starts, cache.pages, query.stride(0), query.stride(1), recent.stride(0),
            recent.stride(1), recent.stride(2), length_step, heads, cache.keys[0].shape[2],
            width**-0.5 if scale is None else scale,
            ROWS=max(16, triton.next_power_of_2(heads // key_heads)), SHARING=cache.value_form.group,
            TOKENS=launch.tokens, LEADS=overlaps, INTERPRETED=triton_interprets(), num_stages=launch.stages,
            num_warps=launch.warps, **flags,
        )  # fmt: skip
        block = min(COLUMNS, width)
        join_kernel[(heads, batch, width // block)](
            scratch.partial, scratch.weight, out, lengths, starts, None, out.stride(0), out.stride(1), length_step,
            heads, SPLIT_ROWS=max(2, triton.next_power_of_2(launch.splits)), BLOCK=block, LISTED=False, ALL=True,
            num_warps=JOINING_WARPS, **flags, **overlapping(overlaps),
        )  # fmt: skip
    return out


def _in_words(coded: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Codes four by four; steps and middles as they are."""
    codes, *others = coded
    return codes.view(torch.int32), *others


def _key_words(coded: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Codes four by four, and so their steps and middles, which lie by channel."""
    codes, step, middle = coded
    return codes.view(torch.int32), step.view(torch.int64), middle.view(torch.int64)
