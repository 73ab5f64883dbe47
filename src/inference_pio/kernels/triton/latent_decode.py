"""Attention of one new token a row over a latent cache: every row of it is read once, for all heads.

The queries are absorbed ones (`kernels.latent_attention.absorb_queries`), the results weighted latents, which
`expand_values` turns into what the heads give. The plain truth is `kernels.latent_attention.naive_latent_attention`.
"""

from __future__ import annotations

import torch

import triton
import triton.language as tl
from inference_pio.compat import triton_interprets
from inference_pio.kernels.page_list import PageList
from inference_pio.kernels.triton.attention_support import supports_latent_decode
from inference_pio.kernels.triton.decode import COLUMNS, HIDDEN, LEAST, LOG2_E, DecodeScratch, join_kernel, share
from inference_pio.kernels.triton.launch import PAGE, LatentLaunch, choose_latent_launch, device_limits, on_device
from inference_pio.kernels.triton.overlap import let_others_begin, may_overlap, overlapping
from inference_pio.kernels.triton.support import require


@triton.jit(
    do_not_specialize=["table_batch", "list_length", "length_step", "heads"],
    do_not_specialize_on_alignment=["lengths", "starts", "table", "counts", "indices"],
)
def latent_decode_kernel(
    query, query_rope, latent, rope, partial, weight, lengths, starts, table, counts, indices,
    query_batch, query_head, query_rope_batch, query_rope_head,
    latent_batch, latent_page, latent_token, rope_batch, rope_page, rope_token,
    table_batch, list_length, length_step, heads, scale,
    PAGE_SIZE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, ROPE: tl.constexpr,
    SPLITS: tl.constexpr, HAS_STARTS: tl.constexpr, PAGED: tl.constexpr, LISTED: tl.constexpr,
    LEADS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    split, batch = tl.program_id(0), tl.program_id(2)
    if LEADS:
        let_others_begin(INTERPRETED)
    begin, end, seen_from, seen_to, _busy = share(
        batch, 0, 1, split, lengths, length_step, starts, counts, PAGE_SIZE, SPLITS, HAS_STARTS, LISTED
    )
    if begin >= end:
        return
    rows, columns = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    tokens, turned = tl.arange(0, BLOCK), tl.arange(0, ROPE)
    heads_here = (rows < heads)[:, None]
    query_places = query + batch * query_batch + rows[:, None] * query_head + columns[None, :]
    queries = tl.load(query_places, mask=heads_here, other=0.0)
    rope_places = query_rope + batch * query_rope_batch + rows[:, None] * query_rope_head + turned[None, :]
    rope_queries = tl.load(rope_places, mask=heads_here, other=0.0)
    if INTERPRETED:  # the interpreter multiplies the bits of bfloat16
        queries, rope_queries = queries.to(tl.float32), rope_queries.to(tl.float32)
    latent_base = latent + tokens[:, None] * latent_token + columns[None, :]
    rope_base = rope + tokens[:, None] * rope_token + turned[None, :]
    if not PAGED:
        latent_base += batch.to(tl.int64) * latent_batch
        rope_base += batch.to(tl.int64) * rope_batch
    listed = indices
    if LISTED:
        listed = indices + batch * list_length

    summed = tl.zeros([ROWS, WIDTH], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    scale2 = scale * LOG2_E
    STEPS: tl.constexpr = PAGE_SIZE // BLOCK
    for step in tl.range(begin * STEPS, end * STEPS):
        page = step // STEPS
        if LISTED:
            page = tl.load(listed + page)
        held = page
        if PAGED:
            held = tl.load(table + batch * table_batch + page)
        first = step % STEPS * BLOCK
        places = page * PAGE_SIZE + first + tokens
        visible = (places >= seen_from) & (places < seen_to)
        latent_offset = held.to(tl.int64) * latent_page + first * latent_token
        rope_offset = held.to(tl.int64) * rope_page + first * rope_token
        latents = tl.load(latent_base + latent_offset, mask=visible[:, None], other=0.0)
        ropes = tl.load(rope_base + rope_offset, mask=visible[:, None], other=0.0)
        if INTERPRETED:
            latents, ropes = latents.to(tl.float32), ropes.to(tl.float32)
        scores = tl.dot(rope_queries, tl.trans(ropes))
        scores = tl.dot(queries, tl.trans(latents), scores)
        scores = tl.where(visible[None, :], scores, HIDDEN)
        higher = tl.maximum(peak, tl.max(scores, 1) * scale2)
        shares = tl.where(visible[None, :], tl.exp2(scores * scale2 - higher[:, None]), 0.0)  # as in `decode`
        shrink = tl.exp2(peak - higher)
        total = total * shrink + tl.sum(shares, 1)
        summed = tl.dot(shares.to(latents.dtype), latents, summed * shrink[:, None])
        peak = higher

    blind = peak < scale2 * (0.5 * HIDDEN)
    left = ((batch * heads + rows) * SPLITS + split).to(tl.int64)
    tl.store(
        partial + left[:, None] * WIDTH + columns[None, :], summed / tl.maximum(total, LEAST)[:, None], mask=heads_here
    )
    tl.store(weight + left, tl.where(blind, float("-inf"), peak + tl.log2(total)), mask=rows < heads)


def latent_decode_attention(
    query: torch.Tensor,
    query_rope: torch.Tensor,
    latent: torch.Tensor,
    rope: torch.Tensor,
    lengths: torch.Tensor,
    starts: torch.Tensor | None = None,
    *,
    scale: float,
    table: torch.Tensor | None = None,
    pages: PageList | None = None,
    out: torch.Tensor | None = None,
    scratch: DecodeScratch | None = None,
    launch: LatentLaunch | None = None,
) -> torch.Tensor:
    """Absorbed `query` [B, H, C] and `query_rope` [B, H, R] over `latent` [B, capacity, C] and `rope` [B, capacity, R],
    which may be two parts of one tensor, or with a `table` int32 [B, pages] over pools [P, 64, C] and [P, 64, R]:
    weighted latents [B, H, C].

    Row b sees tokens `starts[b]` to `lengths[b]`, both int32 on the device ([1] lengths serve all rows), of the listed
    `pages` alone if given (one list a row). `scale` is of the width before absorbing. Nothing is allocated where `out`,
    `scratch` and `launch` are given; nothing waits for the device. Raises InvalidSetting for tensors that
    `supports_latent_decode` refuses.
    """
    require(supports_latent_decode(query, query_rope, latent, rope, lengths, starts, table))
    batch, heads, width = query.shape
    capacity = latent.shape[1] if table is None else table.shape[1] * PAGE
    launch = launch or choose_latent_launch(device_limits(query.device), batch, heads, width, rope.shape[-1], capacity)
    out = torch.empty_like(query, memory_format=torch.contiguous_format) if out is None else out
    scratch = scratch or DecodeScratch.of(batch, heads, width, launch, query.device)
    length_step = int(lengths.numel() > 1)
    flags = {"HAS_STARTS": starts is not None, "LISTED": pages is not None, "PAGE_SIZE": PAGE}
    flags |= {"WIDTH": width, "SPLITS": launch.splits}
    counts, indices = (pages.counts, pages.indices) if pages else (None, None)
    overlaps = may_overlap(query.device)
    with on_device(query):
        latent_decode_kernel[(launch.splits, triton.cdiv(heads, launch.rows), batch)](
            query, query_rope, latent, rope, scratch.partial, scratch.weight, lengths, starts, table, counts, indices,
            query.stride(0), query.stride(1), query_rope.stride(0), query_rope.stride(1),
            *_strides(latent, table), *_strides(rope, table),
            0 if table is None else table.stride(0), 0 if indices is None else indices.shape[-1], length_step, heads,
            scale, BLOCK=launch.block, ROWS=launch.rows, ROPE=rope.shape[-1], PAGED=table is not None,
            LEADS=overlaps, INTERPRETED=triton_interprets(),
            num_warps=launch.warps, num_stages=launch.stages, **flags,
        )  # fmt: skip
        columns = min(COLUMNS, width)
        join_kernel[(heads, batch, width // columns)](
            scratch.partial, scratch.weight, out, lengths, starts, counts, out.stride(0), out.stride(1), length_step,
            heads, GROUP=heads, SPLIT_ROWS=max(2, triton.next_power_of_2(launch.splits)), BLOCK=columns,
            ALL=False, **flags, **overlapping(overlaps),
        )  # fmt: skip
    return out


def _strides(cache: torch.Tensor, table: torch.Tensor | None) -> tuple[int, int, int]:
    """Batch, page and token strides of a cache, or of a pool of pages."""
    first, token, _ = cache.stride()
    return (0, first, token) if table is not None else (first, PAGE * token, token)
