"""Where single queries look: of each block of keys the log of what its scores weigh, in one pass over the keys.

The plain truth is `kernels.row_mass.naive_row_mass`. Queries of one head share what is read of the keys, and many
programs share the keys: each takes a range of blocks, and nothing has to be joined afterwards.
"""

from __future__ import annotations

import torch

import triton
import triton.language as tl
from inference_pio.compat import triton_interprets
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.triton.attention_support import supports
from inference_pio.kernels.triton.launch import MassLaunch, choose_mass_launch, device_limits, on_device
from inference_pio.kernels.triton.support import require

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(
    do_not_specialize=["rows", "keys", "blocks", "splits"],
    do_not_specialize_on_alignment=["positions", "starts", "weights"],
)
def weights_kernel(
    query, key, positions, starts, weights,
    query_batch, query_head, query_row, key_batch, key_head, key_row, rows, keys, blocks, splits, scale,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, HAS_STARTS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    # Heads that share keys run side by side, so that the second finds in the cache what the first has read.
    heads = tl.num_programs(1)
    head, batch = tl.program_id(1), tl.program_id(2)
    tiles = tl.cdiv(rows, ROWS)
    head = head.to(tl.int64)
    split, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    row, column, token = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH), tl.arange(0, BLOCK)
    present = row < rows
    place = tl.load(positions + row, mask=present, other=-1).to(tl.int32)
    seen_from = 0
    if HAS_STARTS:
        seen_from = tl.maximum(tl.load(starts + batch), 0)
    base = query + batch.to(tl.int64) * query_batch + head * query_head
    queries = tl.load(base + row[:, None] * query_row + column[None, :], mask=present[:, None], other=0.0)
    key_base = key + batch.to(tl.int64) * key_batch + head // GROUP * key_head
    key_base += token[:, None] * key_row + column[None, :]
    left = weights + ((batch * heads + head) * blocks) * rows + row
    if INTERPRETED:  # the interpreter multiplies the bits of bfloat16
        queries = queries.to(tl.float32)
    scale2 = scale * LOG2_E
    for block in tl.range(split * blocks // splits, (split + 1) * blocks // splits):
        columns = block * BLOCK + token
        keys_here = key_base + tl.cast(block * BLOCK, tl.int64) * key_row
        found = tl.load(keys_here, mask=(columns < keys)[:, None], other=0.0)
        if INTERPRETED:
            found = found.to(tl.float32)
        scores = tl.dot(queries, tl.trans(found)) * scale2
        visible = (columns <= place[:, None]) & (columns >= seen_from)[None, :]
        scores = tl.where(visible, scores, float("-inf"))
        highest = tl.max(scores, 1)
        peak = tl.maximum(highest, -1.0e30)  # infinities must not meet
        total = tl.sum(tl.exp2(scores - peak[:, None]), 1)
        weight = tl.where(highest == float("-inf"), float("-inf"), peak + tl.log2(total))
        tl.store(left + tl.cast(block, tl.int64) * rows, weight, mask=present)


def row_weights(
    query: torch.Tensor, positions: torch.Tensor, key: torch.Tensor, *, block: int, scale: float | None = None,
    starts: torch.Tensor | None = None, launch: MassLaunch | None = None,
) -> torch.Tensor:  # fmt: skip
    """`query` [B, H, R, D] at `positions` [R] of `key` [B, key heads, L, D]: the log (base 2) of what each row's scores
    over each block weigh, float32 [B, H, R, blocks], -inf where it sees nothing; in memory, rows lie side by side.

    Row b sees keys from `starts[b]` on. Nothing waits for the device. Raises InvalidSetting for what is not served.
    """
    require(supports(query, key, key))
    if block not in (16, 32, 64, 128):
        raise InvalidSetting(f"blocks of {block} keys are not known to the kernel: give 16, 32, 64 or 128.")
    batch, heads, rows, width = query.shape
    keys, blocks = key.shape[2], -(-key.shape[2] // block)
    launch = launch or choose_mass_launch(device_limits(query.device), batch * heads, rows, width, blocks)
    weights = torch.empty(batch, heads, blocks, rows, device=query.device)
    with on_device(query):
        weights_kernel[(launch.splits * triton.cdiv(rows, launch.rows), heads, batch)](
            query, key, positions, starts, weights, *query.stride()[:3], *key.stride()[:3], rows, keys, blocks,
            launch.splits, width**-0.5 if scale is None else scale,
            BLOCK=block, ROWS=launch.rows, WIDTH=width, GROUP=heads // key.shape[1], HAS_STARTS=starts is not None,
            INTERPRETED=triton_interprets(), num_warps=launch.warps, num_stages=launch.stages,
        )  # fmt: skip
    return weights.transpose(2, 3)


def row_mass(
    query: torch.Tensor, positions: torch.Tensor, key: torch.Tensor, *, block: int, scale: float | None = None,
    starts: torch.Tensor | None = None, launch: MassLaunch | None = None,
) -> torch.Tensor:  # fmt: skip
    """`kernels.row_mass.row_mass` from `row_weights`: the share on each block, float32 [B, H, R, blocks]."""
    weights = row_weights(query, positions, key, block=block, scale=scale, starts=starts, launch=launch)
    return torch.softmax(weights * 0.6931471805599453, -1).nan_to_num(0.0)
