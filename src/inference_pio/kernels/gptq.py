"""Rounding that looks at inputs: what one column loses, the columns still to be rounded make up for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 128
"""Columns whose corrections are carried to all later columns in one product."""
LEAST_DAMPING = 0.01


@dataclass(frozen=True)
class Grid:
    """The grids of a format: `fit` them to weights [..., G], `round` weights to codes, `values` of codes.

    Grids are [..., 1] or [..., 2] for weights [..., G]; codes and values have the shape of the weights.
    """

    fit: Callable[[Tensor], Tensor]
    round: Callable[[Tensor, Tensor], Tensor]
    values: Callable[[Tensor, Tensor], Tensor]


def naive_gptq(
    weight: Tensor, gram: Tensor, group: int, grid: Grid, rows: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """The same for one matrix, column by column as it was published: the inverse of what is left, updated each time."""
    weight, rest = weight.double().clone(), inverse_of(gram.double()[None], rows)[0]
    codes, grids = torch.zeros_like(weight), []
    for column in range(weight.shape[1]):
        if column % group == 0:
            grids.append(grid.fit(weight[:, column : column + group].float()))
        codes[:, column] = grid.round(weight[:, column, None].float(), grids[-1])[:, 0].double()
        error = weight[:, column] - grid.values(codes[:, column, None].float(), grids[-1])[:, 0].double()
        weight[:, column:] -= torch.outer(error / rest[column, column], rest[column, column:])
        rest = rest - torch.outer(rest[:, column], rest[column]) / rest[column, column]
    return codes.float(), torch.stack(grids, -2)


@torch.no_grad()
def gptq(
    weight: Tensor, gram: Tensor, group: int, grid: Grid, rows: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Codes [B, N, K], as float32 numbers, and grids [B, N, K / group, ...] of weights [B, N, K].

    `gram` [B, K, K] is the sum of x xᵀ over the inputs x of each weight, over `rows[b]` inputs where that is known:
    few tell little, and the Gram matrix is then drawn towards one of inputs that have nothing to do with one another.
    Nothing that is given is written to.
    """
    left, factor = weight.float().clone(memory_format=torch.contiguous_format), _factor(gram, rows)
    codes, grids = torch.empty_like(left), []
    for start in range(0, left.shape[-1], BLOCK):
        block = left[..., start : start + BLOCK]
        upper = factor[:, start : start + BLOCK]
        errors = torch.empty_like(block)
        for place in range(block.shape[-1]):
            column = start + place
            if column % group == 0:
                ahead = left[..., column : column + group] if group > BLOCK else block[..., place : place + group]
                grids.append(grid.fit(ahead))
            codes[..., column, None] = grid.round(block[..., place, None], grids[-1])
            lost = block[..., place, None] - grid.values(codes[..., column, None], grids[-1])
            errors[..., place, None] = lost / upper[:, place, column, None, None]
            block[..., place:] -= errors[..., place, None] * upper[:, place, None, column : start + block.shape[-1]]
        left[..., start + BLOCK :] -= errors @ upper[:, :, start + BLOCK :]
    return codes, torch.stack(grids, -2)


def _factor(gram: Tensor, rows: Sequence[int] | None) -> Tensor:
    """The upper triangular factor of the inverse, whose rows are the corrections, float32 [B, K, K]."""
    return torch.linalg.cholesky(inverse_of(gram.double(), rows), upper=True).float()


def inverse_of(gram: Tensor, rows: Sequence[int] | None) -> Tensor:
    """The inverse of Gram matrices [B, K, K], each drawn towards its mean diagonal; inputs never seen stay apart."""
    width = gram.shape[-1]
    shares = [max(LEAST_DAMPING, width / (width + count)) for count in rows or ()] or [LEAST_DAMPING]
    drawn = torch.tensor(shares, dtype=gram.dtype, device=gram.device)[:, None]
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    level = diagonal.mean(-1, keepdim=True)
    level = torch.where(level > 0, level, torch.ones_like(level))
    damped = (1 - drawn[..., None]) * gram + torch.diag_embed((drawn * level).expand_as(diagonal))
    return torch.cholesky_inverse(torch.linalg.cholesky(damped))
