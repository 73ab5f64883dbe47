"""A kernel that does nothing but lay codes and x out as matrix units take them from registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inference_pio.kernels.triton.held_tiles import held_tile, in_their_order


@triton.jit
def laid_kernel(
    low, high, x, tile, narrow, GROUPS: tl.constexpr, ROWS: tl.constexpr, MEMBERS: tl.constexpr, CODES: tl.constexpr
):
    groups, columns = tl.arange(0, GROUPS)[:, None, None], tl.arange(0, 16 * CODES)
    words = (groups * ROWS + tl.arange(0, ROWS)[None, :, None]) * 16 + tl.arange(0, 16)[None, None, :]
    held = held_tile(tl.load(low + words), tl.load(high + words), GROUPS, ROWS, CODES, True)
    rows = groups * 2 * ROWS + tl.arange(0, 2 * ROWS)[None, :, None]
    tl.store(tile + rows * 16 * CODES + columns[None, None, :], held.to(tl.float32))
    members = groups * MEMBERS + tl.arange(0, MEMBERS)[None, :, None]
    given = tl.load(x + members * 16 * CODES + columns[None, None, :])
    places = (groups * 16 * CODES + columns[None, :, None]) * 8 + tl.arange(0, 8)[None, None, :]
    tl.store(narrow + places, in_their_order(given, GROUPS, MEMBERS, CODES))


def laid(words: torch.Tensor, x: torch.Tensor, codes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Words [groups, 2 * rows, 16] as a tall matrix, and x [groups, members, 16 * codes] as a narrow one."""
    groups, rows, members = words.shape[0], words.shape[1] // 2, x.shape[1]
    tile, narrow = torch.empty(groups, 2 * rows, 16 * codes), torch.empty(groups, 16 * codes, 8)
    low, high = words[:, :rows].contiguous(), words[:, rows:].contiguous()
    laid_kernel[(1,)](low, high, x, tile, narrow, groups, rows, members, codes)
    return tile, narrow
