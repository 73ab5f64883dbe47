"""A block of queries' walk over the keys: tiles of scores are taken into a running softmax, one after another.

The plain truth is `kernels.attention.naive_attention`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from inference_pio.kernels import mask_tiles

LOG2_E = tl.constexpr(1.4426950408889634)
ALIGNED = tl.constexpr(mask_tiles.ALIGNED)
HIDDEN = tl.constexpr(-1.0e30)  # finite: a row that has seen no key yet must not become NaN


@triton.jit
def rows_of(tensor, batch, head, first, until, batch_stride, head_stride, row_stride,
            ROWS: tl.constexpr, WIDTH: tl.constexpr, BOUNDED: tl.constexpr, DESCRIBED: tl.constexpr):  # fmt: skip
    """A block of ROWS rows; those at `until` and beyond are zero if BOUNDED, and must not exist otherwise."""
    if DESCRIBED:
        block = tensor.load([batch, head, first, 0]).reshape(ROWS, WIDTH)
    else:
        rows, columns = tl.arange(0, ROWS), tl.arange(0, WIDTH)
        base = tensor + batch.to(tl.int64) * batch_stride + head.to(tl.int64) * head_stride
        places = base + first.to(tl.int64) * row_stride + rows[:, None] * row_stride + columns[None, :]
        if BOUNDED:
            block = tl.load(places, mask=(first + rows < until)[:, None], other=0.0)
        else:
            block = tl.load(places)
    return block


@triton.jit
def take(summed, total, peak, scores, highest, present, value, batch, head, place, seen_to, scale,
         value_batch, value_head, value_row, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr,
         GUARDED: tl.constexpr, DESCRIBED: tl.constexpr, INTERPRETED: tl.constexpr):  # fmt: skip
    """Take a tile of scores, whose largest of each row are `highest`, into the running softmax."""
    higher = tl.maximum(peak, highest)
    weights = tl.exp2(scores * scale - higher[:, None])
    if MASKED:  # a fused product is not rounded: minus its rounded twin it is no zero where HIDDEN is the peak
        weights = tl.where(scores > 0.5 * HIDDEN, weights, 0.0)
    shrink = tl.exp2(peak - higher)
    total = total * shrink + tl.sum(weights, 1)
    summed = summed * shrink[:, None]
    values = rows_of(
        value, batch, head, place, seen_to, value_batch, value_head, value_row, BLOCK_N, WIDTH, MASKED, DESCRIBED
    )
    if MASKED and GUARDED:  # padding may hold anything, and zero times NaN is NaN
        values = tl.where(present[:, None], values, 0.0)
    if INTERPRETED:
        values = values.to(tl.float32)
    summed = tl.dot(weights.to(values.dtype), values, summed)
    return summed, total, higher


@triton.jit
def visit(summed, total, peak, query, positions, key, value, blocks, batch, head, first, last, turn, skip, seen_from,
          seen_to, scale, key_batch, key_head, key_row, value_batch, value_head, value_row, asked, margin, left_out,
          mask, mask_rows, own_scale, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
          MASKED: tl.constexpr, CAUSAL: tl.constexpr, GUARDED: tl.constexpr, LISTED: tl.constexpr,
          DESCRIBED: tl.constexpr, CERTIFIED: tl.constexpr, READ: tl.constexpr, ADDED: tl.constexpr,
          LEAST: tl.constexpr, INTERPRETED: tl.constexpr):  # fmt: skip
    """Take steps `first` to `last` into the running softmax, leaving out `skip` from `turn` on if MASKED; a step is a
    block of BLOCK_N keys. If CERTIFIED, steps that lie `margin` below the peak of all rows `asked` for are left out.

    If MASKED and READ, `mask` is read at the queries' `mask_rows`: it hides where it is zero; if ADDED it joins the
    scores, which are scaled by `own_scale` before that, and hides below LEAST."""
    for step in tl.range(first, last):
        if MASKED:
            step += tl.where(step < turn, 0, skip)
        place = step * BLOCK_N
        if LISTED:
            place = (tl.load(blocks + step // PARTS) * PARTS + step % PARTS) * BLOCK_N
        keys = rows_of(
            key, batch, head, place, seen_to, key_batch, key_head, key_row, BLOCK_N, WIDTH, MASKED, DESCRIBED
        )
        if INTERPRETED:  # the interpreter multiplies the bits of bfloat16
            keys = keys.to(tl.float32)
        scores = tl.dot(query, tl.trans(keys))
        columns = place + tl.arange(0, BLOCK_N)
        present = (columns >= seen_from) & (columns < seen_to)
        if MASKED:
            visible = present[None, :]
            if CAUSAL:
                visible = visible & (columns[None, :] <= positions[:, None])
            if READ:
                spots = mask + place + mask_rows[:, None] + tl.arange(0, BLOCK_N)[None, :]
                # Rows end at a multiple of ALIGNED in memory: up to `keys` alone each number would be read by itself.
                held = tl.load(spots, mask=(columns < tl.cdiv(seen_to, ALIGNED) * ALIGNED)[None, :], other=0)
                if ADDED:
                    held = held.to(tl.float32)
                    scores = scores * own_scale + held
                    visible = visible & ~(held < LEAST)
                else:
                    visible = visible & (held != 0)
            scores = tl.where(visible, scores, HIDDEN)
        highest = tl.max(scores, 1) * scale
        if CERTIFIED:
            above = tl.where(asked & (highest > scale * (0.5 * HIDDEN)), highest - peak, float("-inf"))
            if tl.max(above, 0) >= margin:
                summed, total, peak = take(
                    summed, total, peak, scores, highest, present, value, batch, head, place, seen_to, scale,
                    value_batch, value_head, value_row, BLOCK_N, WIDTH, MASKED, GUARDED, DESCRIBED, INTERPRETED,
                )  # fmt: skip
            else:
                left_out += 1
        else:
            summed, total, peak = take(
                summed, total, peak, scores, highest, present, value, batch, head, place, seen_to, scale,
                value_batch, value_head, value_row, BLOCK_N, WIDTH, MASKED, GUARDED, DESCRIBED, INTERPRETED,
            )  # fmt: skip
    return summed, total, peak, left_out
