"""What the tiles of a mask hide: those that hide all need no computing, and of those that hide nothing no mask is read.

A row that sees no key is no row of its own here: what attends by tiles gives zeros for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

WHOLE, MIXED, HIDDEN = 0, 1, 2
ALIGNED = 16
"""Elements that rows of a mask are moved by, at a time."""
LEAST = -1e29
"""From here down every additive mask hides: what kernels put in the place of hidden scores is less by far."""


@dataclass(frozen=True)
class MaskTiles:
    """A mask [B or 1, H or 1, S, L], uint8 or additive, and which blocks of its keys each block of queries reads:
    `counts` int32 [.., query blocks, 2] of those that hide nothing, and of those that do not hide all; and that many
    block numbers at the front of each row of `indices` int32 [.., query blocks, key blocks].
    """

    mask: torch.Tensor
    counts: torch.Tensor
    indices: torch.Tensor

    @property
    def least(self) -> float | None:
        """Below this number an additive mask hides; None for a boolean one."""
        return least_of(self.mask.dtype) if self.mask.is_floating_point() else None

    @property
    def steps(self) -> tuple[int, int, int, int, int]:
        """From one row of the batch, head and query of the mask to the next, and from row and head of the lists."""
        batch, head, row = steps_of(self.mask)
        heads, blocks = self.counts.shape[1:3]
        return batch, head, row, heads * blocks if len(self.counts) > 1 else 0, blocks if heads > 1 else 0


def least_of(dtype: torch.dtype) -> float:
    """Below this number an additive mask hides.

    >>> least_of(torch.float16), least_of(torch.bfloat16)
    (-32752.0, -1e+29)
    """
    return max(torch.finfo(dtype).min / 2, LEAST)


def naive_tile_kinds(mask: torch.Tensor, query_block: int, key_block: int) -> torch.Tensor:
    """The kind of each tile of a mask [B, H, S, L]: uint8 [B, H, query blocks, key blocks]. Those that reach over the
    last key are never whole."""
    queries, keys = mask.shape[-2:]
    added = mask.dtype != torch.bool
    seen = ~(mask < least_of(mask.dtype)) if added else mask
    plain = mask == 0 if added else mask
    over = (0, -keys % key_block, 0, -queries % query_block)
    by_tile = (-(-queries // query_block), query_block, -(-keys // key_block), key_block)
    some = F.pad(seen, over).unflatten(2, by_tile[:2]).unflatten(4, by_tile[2:]).any(5).any(3)
    rows = F.pad(plain, over[:2])
    rows = F.pad(rows, (0, 0, 0, over[3]), value=True)
    whole = rows.unflatten(2, by_tile[:2]).unflatten(4, by_tile[2:]).all(5).all(3)
    return torch.where(whole, WHOLE, torch.where(some, MIXED, HIDDEN)).to(torch.uint8)


def lists_of(kinds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The `counts` and `indices` of MaskTiles.

    >>> [found.tolist() for found in lists_of(torch.tensor([[[[HIDDEN, MIXED, WHOLE]]]], dtype=torch.uint8))]
    [[[[[1, 2]]]], [[[[2, 1, 0]]]]]
    """
    order = kinds.sort(dim=-1, stable=True).indices
    counts = torch.stack([(kinds == WHOLE).sum(-1), (kinds != HIDDEN).sum(-1)], -1)
    return counts.int(), order.int()


def narrowed(mask: torch.Tensor, shape: tuple[int, int, int, int]) -> torch.Tensor:
    """A mask that expands to [B, H, S, L] as [B or 1, H or 1, S, L]."""
    wide = mask.expand(shape)
    return wide[: shape[0] if wide.stride(0) else 1, : shape[1] if wide.stride(1) else 1]


def steps_of(mask: torch.Tensor) -> tuple[int, int, int]:
    """From one row of the batch, head and query to the next; of what there is only one, no step."""
    batch, head, row = (step if size > 1 else 0 for size, step in zip(mask.shape[:3], mask.stride()[:3], strict=True))
    return batch, head, row


def aligned(mask: torch.Tensor) -> torch.Tensor:
    """A mask [B, H, S, L] whose rows can be moved by ALIGNED elements at a time, to the end: itself, or a copy."""
    if mask.data_ptr() % ALIGNED == 0 and not any(step % ALIGNED for step in (*steps_of(mask), mask.shape[-1])):
        return mask
    rows = mask if mask.stride(2) else mask[:, :, :1]
    padded = F.pad(rows, (0, -mask.shape[-1] % ALIGNED))[..., : mask.shape[-1]]
    return padded.expand(*padded.shape[:2], *mask.shape[2:])
