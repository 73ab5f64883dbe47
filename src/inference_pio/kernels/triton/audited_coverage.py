"""What audited blocks of queries would keep of their true attention for each share of the estimate, in one launch.

The plain truth is `kernels.block_choice.Ranked.coverage`. Nothing is sorted: what ranks above a block is summed.
"""

from __future__ import annotations

import torch

import triton
import triton.language as tl
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.block_estimate import SPAN
from inference_pio.kernels.triton.block_choice import block_estimate, block_kinds, check_choice
from inference_pio.kernels.triton.launch import RANKED_AT_A_TIME, audit_warps, on_device


@triton.jit(
    do_not_specialize=["queries", "keys", "query_spans", "total", "rows", "sinks", "local", "ending", "shares_tried"],
    do_not_specialize_on_alignment=["audited", "shares", "starts", "coverage", "ranks"],
)
def coverage_kernel(
    scores, weights, audited, shares, starts, ranks, coverage, queries, keys, query_spans, key_spans, total, rows,
    sinks, local, ending, shares_tried,
    SPAN: tl.constexpr, QUERY_BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, HAS_STARTS: tl.constexpr,
):  # fmt: skip
    place, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    number = tl.load(audited + place).to(tl.int32)
    seen_from = 0
    if HAS_STARTS:
        seen_from = tl.maximum(tl.load(starts + batch), 0)
    pair = batch.to(tl.int64) * tl.num_programs(1) + head
    blocks = tl.arange(0, BLOCKS)
    estimate = block_estimate(
        scores + pair * query_spans * key_spans, number, queries, keys, query_spans, key_spans, seen_from, blocks, SPAN,
        QUERY_BLOCK // SPAN, KEY_BLOCK // SPAN,
    )  # fmt: skip
    fixed, free = block_kinds(
        number, queries, keys, seen_from, blocks, sinks, local, ending, QUERY_BLOCK, KEY_BLOCK
    )  # fmt: skip

    # The true attention, the mean over the block's rows.
    mass = tl.zeros([BLOCKS], tl.float32)
    for row in tl.range(0, ROWS):  # one at a time: all together would not fit beside the estimate
        found = weights + (pair * total + blocks) * rows + place * ROWS + row
        found = tl.load(found, mask=blocks < total, other=float("-inf"))
        found = tl.exp2(found - tl.maximum(tl.max(found, 0), -1.0e30))
        mass += found / tl.maximum(tl.sum(found, 0), 1.0e-30)
    mass = mass / tl.maximum(tl.sum(mass, 0), 1.0e-30)

    # The estimate that is kept before each block: the fixed ones, and those that rank above it.
    here = ranks + (pair * tl.num_programs(0) + place) * total
    tl.store(here + blocks, tl.where(free, estimate, -1.0), mask=blocks < total)
    tl.debug_barrier()
    before = tl.zeros([BLOCKS], tl.float32) + tl.sum(tl.where(fixed, estimate, 0.0), 0)
    for first in tl.range(0, total, CHUNK):
        other = first + tl.arange(0, CHUNK)
        value = tl.load(here + other, mask=other < total, other=-1.0)[:, None]
        above = (value > estimate[None, :]) | ((value == estimate[None, :]) & (other[:, None] < blocks[None, :]))
        before += tl.sum(tl.where(above, tl.maximum(value, 0.0), 0.0), 0)
    left = coverage + (pair * tl.num_programs(0) + place) * shares_tried
    for share in tl.range(0, shares_tried):
        kept = fixed | (free & (before < tl.load(shares + share)))
        tl.store(left + share, tl.sum(tl.where(kept, mass, 0.0), 0))


def audited_coverage(
    scores: torch.Tensor, weights: torch.Tensor, audited: torch.Tensor, shares: torch.Tensor, queries: int, keys: int,
    *, query_block: int, key_block: int, sinks: int = 1, local: int = 2, ending: int = 0,
    starts: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Of each of the `audited` blocks of queries int64 [A], the attention that lies on what is kept of it for each of
    `shares` [T]: float32 [B, H, A, T]. By `scores` of `kernels.block_estimate.span_scores` and by `weights`
    [B, H, A x rows, blocks] of `row_weights`, as many rows a block, as they lie there. Nothing waits for the device."""
    batch, heads, query_spans, key_spans = scores.shape
    blocks, rows = -(-keys // key_block), weights.shape[2]
    check_choice(blocks, query_block, key_block)
    by_block = weights.transpose(2, 3)
    if rows % audited.numel() or by_block.shape[2] != blocks or not by_block.is_contiguous():
        raise InvalidSetting(
            f"{rows} rows over {weights.shape[3]} blocks do not belong to {audited.numel()} audited blocks of queries "
            f"over {blocks}: give what row_weights gives for as many rows of each."
        )
    coverage = torch.empty(batch, heads, audited.numel(), shares.numel(), device=scores.device)
    ranks = torch.empty(batch, heads, audited.numel(), blocks, device=scores.device)
    padded = max(16, triton.next_power_of_2(blocks))
    with on_device(scores):
        coverage_kernel[(audited.numel(), heads, batch)](
            scores.contiguous(), by_block, audited, shares, starts, ranks, coverage, queries, keys, query_spans,
            key_spans, blocks, rows, sinks, local, ending, shares.numel(), SPAN=SPAN, QUERY_BLOCK=query_block,
            KEY_BLOCK=key_block, BLOCKS=padded, ROWS=rows // audited.numel(), CHUNK=RANKED_AT_A_TIME,
            HAS_STARTS=starts is not None, num_warps=audit_warps(padded),
        )  # fmt: skip
    return coverage
