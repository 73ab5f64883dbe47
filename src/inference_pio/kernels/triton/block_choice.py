"""Which blocks of keys each block of queries keeps, written as lists: one program a row, nothing sorted.

The plain truth is `kernels.block_choice.Ranked` over `kernels.block_estimate.estimate_by_means`. The least estimate
that is kept is found by halving the range of its bits, which grow with the number: thirty sums over the row.
"""

from __future__ import annotations

import torch

import triton
import triton.language as tl
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.block_estimate import SPAN
from inference_pio.kernels.block_sparse import BlockList
from inference_pio.kernels.triton.launch import MOST_BLOCKS, choice_warps, on_device

LOG2_E = tl.constexpr(1.4426950408889634)
HALF_OF_ALL = tl.constexpr(2**29)
"""The bits of an estimate lie below 2**30, the bits of 2.0."""


@triton.jit
def smallest_set(estimate, fixed, free, share):
    """The `fixed` ones, and of the `free` ones the largest that bring the estimate to `share`; all if they do not reach
    it. Equal ones are taken from the front."""
    bits = tl.where(free, estimate.to(tl.int32, bitcast=True), -1)
    held = tl.sum(tl.where(fixed, estimate, 0.0), 0)
    low, step = 0, HALF_OF_ALL
    for _ in tl.range(30):
        passed = held + tl.sum(tl.where(bits >= low + step, estimate, 0.0), 0) >= share
        low += passed.to(tl.int32) * step
        step = step // 2
    # `low` is the largest bound that leaves enough, if any does.
    over, level = bits > low, bits == low
    mass = tl.sum(tl.where(over, estimate, 0.0), 0)
    least = tl.max(tl.where(level, estimate, 0.0), 0)
    wanted = tl.minimum(tl.ceil((share - held - mass) / tl.maximum(least, 1.0e-30)), 1.0e6).to(tl.int32)
    among = tl.cumsum(level.to(tl.int32), 0)
    chosen = over | (level & (among <= tl.maximum(wanted, 1)))
    reached, done = held + tl.sum(tl.where(free, estimate, 0.0), 0) >= share, held >= share
    return fixed | (free & (chosen | (reached == 0)) & (done == 0))


@triton.jit
def span_weights(row, last, seen_from, spans, key_spans, SPAN: tl.constexpr):
    """What each of `spans` weighs for one span of queries whose last one stands at `last`, before it is divided by the
    second answer, the sum; the third is the peak to compare others with."""
    found = tl.load(row + spans, mask=spans < key_spans, other=0.0)  # wide: what is hidden is taken out afterwards
    visible = (spans < key_spans) & (spans * SPAN <= last) & ((spans + 1) * SPAN > seen_from)
    found = tl.where(visible, found, float("-inf"))
    peak = tl.maximum(tl.max(tl.max(found, 1), 0), -1.0e30)  # infinities must not meet
    weights = tl.exp2((found - peak) * LOG2_E)
    return weights, tl.maximum(tl.sum(tl.sum(weights, 1), 0), 1.0e-30), peak


@triton.jit
def block_estimate(scores, number, queries, keys, query_spans, key_spans, seen_from, blocks,
                   SPAN: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr):  # fmt: skip
    """The estimate of each of `blocks` for the block of queries `number`: the mean over its ROWS spans of queries."""
    spans = blocks[:, None] * PARTS + tl.arange(0, PARTS)[None, :]
    counted = tl.minimum(query_spans - number * ROWS, ROWS)
    estimate = tl.zeros_like(blocks).to(tl.float32)
    for row in tl.static_range(ROWS):
        span = tl.minimum(number * ROWS + row, query_spans - 1)
        last = keys - queries - 1 + tl.minimum((span + 1) * SPAN, queries)
        weights, total, _ = span_weights(scores + span * key_spans, last, seen_from, spans, key_spans, SPAN)
        estimate += tl.where(row < counted, tl.sum(weights, 1) / (total * counted), 0.0)
    return estimate


@triton.jit
def block_kinds(number, queries, keys, seen_from, blocks, sinks, local, ending, QUERY_BLOCK: tl.constexpr,
                KEY_BLOCK: tl.constexpr):  # fmt: skip
    """Which of `blocks` are kept whatever their estimate, and which other ones hold a visible key."""
    last = keys - queries - 1 + tl.minimum((number + 1) * QUERY_BLOCK, queries)
    visible = (blocks * KEY_BLOCK <= last) & ((blocks + 1) * KEY_BLOCK > seen_from) & (blocks * KEY_BLOCK < keys)
    near = blocks > last // KEY_BLOCK - local - (QUERY_BLOCK // KEY_BLOCK - 1)
    whole = (ending > 0) & ((number + 1) * QUERY_BLOCK > queries - ending)
    fixed = visible & (near | (blocks < seen_from // KEY_BLOCK + sinks) | whole)
    return fixed, visible & (fixed == 0)


@triton.jit(
    do_not_specialize=["queries", "keys", "query_spans", "list_length", "sinks", "local", "ending"],
    do_not_specialize_on_alignment=["shares", "before", "starts", "counts", "indices"],
)
def choice_kernel(
    scores, shares, before, starts, counts, indices, queries, keys, query_spans, key_spans, list_length, sinks, local,
    ending, SPAN: tl.constexpr, QUERY_BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    HAS_BEFORE: tl.constexpr, HAS_STARTS: tl.constexpr,
):  # fmt: skip
    number, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    share = tl.load(shares + head)
    if HAS_BEFORE:  # noqa: SIM102 (what is not given must not be loaded)
        if tl.load(before + head) == share:  # its lists stand
            return
    seen_from = 0
    if HAS_STARTS:
        seen_from = tl.maximum(tl.load(starts + batch), 0)
    row = batch.to(tl.int64) * tl.num_programs(1) + head
    blocks = tl.arange(0, BLOCKS)
    estimate = block_estimate(
        scores + row * query_spans * key_spans, number, queries, keys, query_spans, key_spans, seen_from, blocks, SPAN,
        QUERY_BLOCK // SPAN, KEY_BLOCK // SPAN,
    )  # fmt: skip
    fixed, free = block_kinds(
        number, queries, keys, seen_from, blocks, sinks, local, ending, QUERY_BLOCK, KEY_BLOCK
    )  # fmt: skip
    kept = smallest_set(estimate, fixed, free, share).to(tl.int32)
    row = row * tl.num_programs(0) + number
    tl.store(counts + row, tl.sum(kept, 0))
    tl.store(indices + row * list_length + tl.cumsum(kept, 0) - 1, blocks, mask=kept != 0)


def choose_blocks(
    scores: torch.Tensor, shares: torch.Tensor, queries: int, keys: int, *, query_block: int, key_block: int,
    sinks: int = 1, local: int = 2, ending: int = 0, starts: torch.Tensor | None = None,
    before: torch.Tensor | None = None, lists: BlockList | None = None,
) -> BlockList:  # fmt: skip
    """For each head (`shares` float32 [H]) the blocks that hold its share of the estimate by `scores`, which
    `kernels.block_estimate.span_scores` gives, beside the fixed ones: as lists. Nothing waits for the device.

    Given `lists` and the shares `before` which they were made for, the lists of other heads are made anew in place.
    """
    batch, heads, query_spans, key_spans = scores.shape
    blocks = -(-keys // key_block)
    check_choice(blocks, query_block, key_block)
    rows = -(-queries // query_block)
    if lists is None:
        indices = torch.empty(batch, heads, rows, blocks, dtype=torch.int32, device=scores.device)
        lists = BlockList(indices.new_empty(batch, heads, rows), indices, query_block, key_block)
    padded = max(16, triton.next_power_of_2(blocks))
    with on_device(scores):
        choice_kernel[(rows, heads, batch)](
            scores.contiguous(), shares, before, starts, lists.counts, lists.indices, queries, keys, query_spans,
            key_spans, blocks, sinks, local, ending, SPAN=SPAN, QUERY_BLOCK=query_block, KEY_BLOCK=key_block,
            BLOCKS=padded, HAS_BEFORE=before is not None, HAS_STARTS=starts is not None, num_warps=choice_warps(padded),
        )  # fmt: skip
    return lists


def check_choice(blocks: int, query_block: int, key_block: int) -> None:
    """Raise InvalidSetting for what the kernels that choose cannot hold."""
    if query_block % SPAN or key_block % SPAN or blocks > MOST_BLOCKS:
        raise InvalidSetting(
            f"the kernel chooses among up to {MOST_BLOCKS} blocks of keys, in whole spans of {SPAN} tokens, and not "
            f"among {blocks} of {key_block} for blocks of {query_block} queries: take larger blocks, or torch's way."
        )
