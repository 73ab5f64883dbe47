"""What the tiles of a mask hide, in one pass over it, kept on the mask for the layers that follow.

The plain truth is `kernels.mask_tiles.naive_tile_kinds`.
"""

from __future__ import annotations

import torch

import triton
import triton.language as tl
from inference_pio.kernels import mask_tiles
from inference_pio.kernels.mask_tiles import (
    HIDDEN,
    MIXED,
    WHOLE,
    MaskTiles,
    aligned,
    least_of,
    lists_of,
    narrowed,
    steps_of,
)
from inference_pio.kernels.triton.flash_launch import FlashLaunch
from inference_pio.kernels.triton.launch import on_device

ALIGNED = tl.constexpr(mask_tiles.ALIGNED)
KINDS = tl.constexpr((WHOLE, MIXED, HIDDEN))
KEPT = "_inference_pio_tiles"


@triton.jit(do_not_specialize=["heads", "queries", "keys", "key_blocks"])
def tile_kinds_kernel(
    mask, kinds, mask_batch, mask_head, mask_row, heads, queries, keys, key_blocks,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ADDED: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    place = (tile % key_blocks) * BLOCK_N
    first_row = (tile // key_blocks) * BLOCK_M
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    rows = tl.minimum(first_row + tl.arange(0, BLOCK_M), queries - 1) - first_row
    columns = tl.arange(0, BLOCK_N)
    present = (place + columns < keys)[None, :]
    held_to = tl.cdiv(keys, ALIGNED) * ALIGNED  # where rows end in memory: else each number would be read by itself
    mask += batch.to(tl.int64) * mask_batch + head.to(tl.int64) * mask_head + first_row.to(tl.int64) * mask_row
    held = tl.load(
        mask + place + rows[:, None] * mask_row + columns[None, :], mask=(place + columns < held_to)[None, :], other=0
    )
    if ADDED:
        held = held.to(tl.float32)
        seen, plain = present & ~(held < LEAST), present & (held == 0)
    else:
        seen = present & (held != 0)
        plain = seen
    some = tl.max(tl.max(seen.to(tl.int32), 1), 0)
    whole = tl.min(tl.min(plain.to(tl.int32), 1), 0)
    kind = tl.where(whole == 1, KINDS[0], tl.where(some == 1, KINDS[1], KINDS[2]))
    tl.store(kinds + tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tile, kind.to(tl.uint8))


def tile_kinds(mask: torch.Tensor, query_block: int, key_block: int) -> torch.Tensor:
    """The kind of each tile of a mask [B, H, S, L], uint8 or additive: uint8 [B, H, query blocks, key blocks]."""
    batch, heads, queries, keys = mask.shape
    blocks = triton.cdiv(queries, query_block), triton.cdiv(keys, key_block)
    kinds = torch.empty(batch, heads, *blocks, dtype=torch.uint8, device=mask.device)
    added = mask.is_floating_point()
    with on_device(mask):
        tile_kinds_kernel[(blocks[0] * blocks[1], batch * heads)](
            mask, kinds, *steps_of(mask), heads, queries, keys, blocks[1],
            BLOCK_M=query_block, BLOCK_N=key_block, ADDED=added, LEAST=least_of(mask.dtype) if added else None,
        )  # fmt: skip
    return kinds


def tiles_of(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor, launch: FlashLaunch) -> MaskTiles:
    """The tiles of a mask that expands to the scores of `query` [B, H, S, D] and `key` [B, key heads, L, D]."""
    shape = (*query.shape[:3], key.shape[2])
    found = narrowed(mask.view(torch.uint8) if mask.dtype == torch.bool else mask, shape)
    wanted = (shape, launch.query_block, launch.key_block, _version(mask))
    kept = getattr(mask, KEPT, None)
    if kept is None or kept[0] != wanted or wanted[-1] is None:
        moved = aligned(found)
        lists = lists_of(tile_kinds(moved, launch.query_block, launch.key_block))
        kept = (wanted, None if moved is found else moved, *lists)  # itself on itself would never be freed
        if wanted[-1] is not None:
            setattr(mask, KEPT, kept)
    return MaskTiles(found if kept[1] is None else kept[1], *kept[2:])


def _version(mask):
    """What changes when a mask is written to; None where that cannot be told, or what is kept would be recorded."""
    if mask.is_inference() or (mask.is_cuda and torch.cuda.is_current_stream_capturing()):
        return None
    return mask._version
