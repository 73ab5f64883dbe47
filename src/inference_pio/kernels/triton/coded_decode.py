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
from inference_pio.kernels.triton.launch import PAGE, CodedLaunch, choose_coded_launch, device_limits, on_device
from inference_pio.kernels.triton.overlap import overlapping
from inference_pio.kernels.triton.support import require, supports_coded_decode

if TYPE_CHECKING:
    from inference_pio.kernels.coded_decode import CodedCacheView

LOG2_E = tl.constexpr(1.4426950408889634)
HIDDEN = tl.constexpr(-1.0e30)
LEAST = tl.constexpr(1.0e-30)
ABOVE = tl.constexpr(32768.0)
"""What `numbers` adds to codes: a code then lies in the second byte of a float32."""
MIDDLE_CODE = tl.constexpr(127.5)
"""Codes less this are halves up to 127.5, all of which bfloat16 and float16 hold."""
CODES_OF_A_WORD = tl.constexpr(4)


@triton.jit
def numbers(words, INTERPRETED: tl.constexpr):
    """Four tensors in float32: the first codes of all words, the second ones, and so on, each code plus 32768."""
    if INTERPRETED:
        return (
            (words & 0xFF).to(tl.float32) + ABOVE, ((words >> 8) & 0xFF).to(tl.float32) + ABOVE,
            ((words >> 16) & 0xFF).to(tl.float32) + ABOVE, ((words >> 24) & 0xFF).to(tl.float32) + ABOVE,
        )  # fmt: skip
    else:  # one instruction a code
        return tl.inline_asm_elementwise(
            """
            prmt.b32 $0, $4, 0x47000000, 0x7404;
            prmt.b32 $1, $4, 0x47000000, 0x7414;
            prmt.b32 $2, $4, 0x47000000, 0x7424;
            prmt.b32 $3, $4, 0x47000000, 0x7434;
            """,
            "=r,=r,=r,=r,r", [words], dtype=(tl.float32, tl.float32, tl.float32, tl.float32), is_pure=True, pack=1,
        )  # fmt: skip


@triton.jit
def four(places, seen, MASKED: tl.constexpr):
    """What lies at four neighbouring places each, in float32."""
    if MASKED:
        return (
            tl.load(places, mask=seen, other=0.0).to(tl.float32),
            tl.load(places + 1, mask=seen, other=0.0).to(tl.float32),
            tl.load(places + 2, mask=seen, other=0.0).to(tl.float32),
            tl.load(places + 3, mask=seen, other=0.0).to(tl.float32),
        )  # fmt: skip
    else:
        return (
            tl.load(places).to(tl.float32), tl.load(places + 1).to(tl.float32),
            tl.load(places + 2).to(tl.float32), tl.load(places + 3).to(tl.float32),
        )  # fmt: skip


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
    scores = tl.where(visible[None, :], scores, HIDDEN)
    higher = tl.maximum(peak, tl.max(scores, 1) * scale)
    shares = tl.where(visible[None, :], tl.exp2(scores * scale - higher[:, None]), 0.0)
    shrink = tl.exp2(peak - higher)
    return shares, shrink[:, None], total * shrink + tl.sum(shares, 1), higher


@triton.jit
def value_numbers(code, steps, middles, TOKENS: tl.constexpr, WORDS: tl.constexpr, TYPE: tl.constexpr):
    """Values [TOKENS, WORDS] of codes [TOKENS, groups, words], which are 32768 more than they are."""
    exact = code - (ABOVE + MIDDLE_CODE)
    return tl.reshape(exact * steps[:, :, None] + middles[:, :, None], [TOKENS, WORDS]).to(TYPE)


@triton.jit(
    do_not_specialize=["length_step", "heads", "room"], do_not_specialize_on_alignment=["lengths", "starts", "coded"]
)
def coded_decode_kernel(
    query, key_code, key_step, key_middle, value_code, value_step, value_middle, recent_key, recent_value,
    partial, weight, lengths, starts, coded, query_batch, query_head, recent_batch, recent_head, recent_token,
    length_step, heads, room, scale,
    PAGE_SIZE: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
    SHARING: tl.constexpr, TOKENS: tl.constexpr, HAS_STARTS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    split, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    key_heads = heads // GROUP
    begin, end, seen_from, seen_to, _busy = share(
        batch, head, key_heads, split, lengths, length_step, starts, starts, PAGE_SIZE, SPLITS, HAS_STARTS, False
    )
    if begin >= end:
        return
    held = tl.load(coded)
    WORDS: tl.constexpr = WIDTH // CODES_OF_A_WORD
    GROUPS: tl.constexpr = WIDTH // SHARING
    PARTS: tl.constexpr = PAGE_SIZE // TOKENS
    TYPE: tl.constexpr = tl.float32 if INTERPRETED else query.dtype.element_ty  # it multiplies the bits of bfloat16
    rows, words, tokens = tl.arange(0, ROWS), tl.arange(0, WORDS), tl.arange(0, TOKENS)
    groups, members = tl.arange(0, GROUPS), tl.arange(0, WORDS // GROUPS)
    channels = words * CODES_OF_A_WORD
    first_head = head * GROUP
    query_places = query + batch * query_batch + (first_head + rows)[:, None] * query_head + channels[None, :]
    q0, q1, q2, q3 = four(query_places, (rows < GROUP)[:, None], True)

    row = (batch * key_heads + head).to(tl.int64) * room
    s0 = tl.zeros([ROWS, WORDS], tl.float32)
    s1, s2, s3 = s0, s0, s0
    total = tl.zeros([ROWS], tl.float32)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    scale2 = scale * LOG2_E
    for part in tl.range(begin * PARTS, tl.minimum(end, held) * PARTS):
        place, first = row + part // PARTS, part % PARTS * TOKENS
        at = place * PAGE_SIZE + first + tokens
        visible = part * TOKENS + tokens >= seen_from
        k0, k1, k2, k3 = numbers(tl.load(key_code + at[:, None] * WORDS + words[None, :]), INTERPRETED)
        t0, t1, t2, t3 = four(key_step + place * WIDTH + channels, visible, False)
        m0, m1, m2, m3 = four(key_middle + place * WIDTH + channels, visible, False)
        scores = products(
            q0 * t0[None, :], q1 * t1[None, :], q2 * t2[None, :], q3 * t3[None, :],
            k0 - (ABOVE + MIDDLE_CODE), k1 - (ABOVE + MIDDLE_CODE), k2 - (ABOVE + MIDDLE_CODE),
            k3 - (ABOVE + MIDDLE_CODE), TYPE,
        )  # fmt: skip
        middles = q0 * m0[None, :] + q1 * m1[None, :] + q2 * m2[None, :] + q3 * m3[None, :]
        scores += tl.sum(middles, 1)[:, None]
        grouped = at[:, None, None] * WORDS + groups[None, :, None] * (WORDS // GROUPS) + members[None, None, :]
        v0, v1, v2, v3 = numbers(tl.load(value_code + grouped), INTERPRETED)
        shared = at[:, None] * GROUPS + groups[None, :]
        steps = tl.load(value_step + shared, mask=visible[:, None], other=0.0).to(tl.float32)
        value_middles = tl.load(value_middle + shared, mask=visible[:, None], other=0.0).to(tl.float32)
        shares, shrink, total, peak = weighed(scores, visible, scale2, total, peak)
        shares = shares.to(TYPE)
        s0 = tl.dot(shares, value_numbers(v0, steps, value_middles, TOKENS, WORDS, TYPE), s0 * shrink)
        s1 = tl.dot(shares, value_numbers(v1, steps, value_middles, TOKENS, WORDS, TYPE), s1 * shrink)
        s2 = tl.dot(shares, value_numbers(v2, steps, value_middles, TOKENS, WORDS, TYPE), s2 * shrink)
        s3 = tl.dot(shares, value_numbers(v3, steps, value_middles, TOKENS, WORDS, TYPE), s3 * shrink)
    recent = batch * recent_batch + head * recent_head + tokens[:, None] * recent_token + channels[None, :]
    for part in tl.range(tl.maximum(begin, held) * PARTS, end * PARTS, num_stages=1):
        places = part * TOKENS + tokens
        visible = (places >= seen_from) & (places < seen_to)
        at = recent + (part - held * PARTS) * TOKENS * recent_token
        k0, k1, k2, k3 = four(recent_key + at, visible[:, None], True)
        v0, v1, v2, v3 = four(recent_value + at, visible[:, None], True)
        scores = products(q0, q1, q2, q3, k0, k1, k2, k3, TYPE)
        shares, shrink, total, peak = weighed(scores, visible, scale2, total, peak)
        shares = shares.to(TYPE)
        s0 = tl.dot(shares, v0.to(TYPE), s0 * shrink)
        s1 = tl.dot(shares, v1.to(TYPE), s1 * shrink)
        s2 = tl.dot(shares, v2.to(TYPE), s2 * shrink)
        s3 = tl.dot(shares, v3.to(TYPE), s3 * shrink)

    blind = peak < scale2 * (0.5 * HIDDEN)
    left = ((batch * heads + first_head + rows) * SPLITS + split).to(tl.int64)
    own, least = (rows < GROUP)[:, None], tl.maximum(total, LEAST)[:, None]
    found = partial + left[:, None] * WIDTH + channels[None, :]
    tl.store(found, s0 / least, mask=own)
    tl.store(found + 1, s1 / least, mask=own)
    tl.store(found + 2, s2 / least, mask=own)
    tl.store(found + 3, s3 / least, mask=own)
    tl.store(weight + left, tl.where(blind, float("-inf"), peak + tl.log2(total)), mask=rows < GROUP)


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
    launch = launch or choose_coded_launch(device_limits(query.device), batch, key_heads, cache.tokens)
    out = torch.empty_like(query, memory_format=torch.contiguous_format) if out is None else out
    scratch = scratch or DecodeScratch.of(batch, heads, width, launch, query.device)
    length_step, recent = int(lengths.numel() > 1), cache.recent_keys
    flags = {"HAS_STARTS": starts is not None, "PAGE_SIZE": PAGE, "GROUP": heads // key_heads, "WIDTH": width}
    flags |= {"SPLITS": launch.splits, "num_warps": launch.warps}
    with on_device(query):
        coded_decode_kernel[(launch.splits, key_heads, batch)](
            query, *_in_words(cache.keys), *_in_words(cache.values), recent, cache.recent_values, scratch.partial,
            scratch.weight, lengths, starts, cache.pages, query.stride(0), query.stride(1), recent.stride(0),
            recent.stride(1), recent.stride(2), length_step, heads, cache.keys[0].shape[2],
            width**-0.5 if scale is None else scale,
            ROWS=max(16, triton.next_power_of_2(heads // key_heads)), SHARING=cache.value_form.group,
            TOKENS=launch.tokens, INTERPRETED=triton_interprets(), num_stages=launch.stages, **flags,
        )  # fmt: skip
        block = min(COLUMNS, width)
        join_kernel[(heads, batch, width // block)](
            scratch.partial, scratch.weight, out, lengths, starts, None, out.stride(0), out.stride(1), length_step,
            heads, SPLIT_ROWS=max(2, triton.next_power_of_2(launch.splits)), BLOCK=block, LISTED=False, **flags,
            **overlapping(False),
        )  # fmt: skip
    return out


def _in_words(coded: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Codes four by four, which one instruction each makes numbers of; steps and middles as they are."""
    codes, *others = coded
    return codes.view(torch.int32), *others
