"""int4 weights on grids without a middle, step times whole number, for layouts that know no other; the truth first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from inference_pio.kernels.int4 import LARGEST_CODE, grid_values, unpack_codes

# A range is narrowed before its grid is fitted: the rarest weights cost the others less than their own.
NARROWINGS = (1.1, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
FINEST = 15
"""Into how many parts a step is cut at most: 8 * 15 codes of 8 bits hold every code of 4 bits."""
BLOCK_ELEMENTS = 2**20


@dataclass(frozen=True)
class WholeGrid:
    """A grid of signed codes of so many bits: weight = (code - zero) * step, `zero` a code, or nothing."""

    bits: int
    zeros: bool = False

    @property
    def lowest(self) -> int:
        return -(1 << self.bits - 1)

    @property
    def highest(self) -> int:
        return (1 << self.bits - 1) - 1


@dataclass(frozen=True)
class MadeOver:
    """Codes int8 [..., N, K], steps bfloat16 and zeros int8 [..., N, groups]; what was lost, and of how much."""

    codes: Tensor
    step: Tensor
    zero: Tensor
    squared_error: float
    squares: float


def whole_values(codes: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    """What codes [..., G] stand for with steps and zeros [...], in float32."""
    return (codes.float() - zero.float()[..., None]) * step.float()[..., None]


def naive_whole_codes(weights: Tensor, step: float, zero: int, grid: WholeGrid) -> list[int]:
    """The nearest codes of one group of weights [G], one by one.

    >>> naive_whole_codes(torch.tensor([-9.0, 0.4, 0.6]), 1.0, 0, WholeGrid(4))
    [-8, 0, 1]
    """
    return [min(max(round(weight / step) + zero, grid.lowest), grid.highest) for weight in weights.tolist()]


@torch.no_grad()
def fit_whole_grid(packed: Tensor, scale: Tensor, grid: WholeGrid) -> MadeOver:
    """Packed int4 codes [..., N, K / 2] with grids [..., K / group, N, 2], made over for a grid without a middle.

    Each group gets the step of the least squared error tried; weights that the new grid can hold stay what they are.
    """
    old = unpack_codes(packed).unflatten(-1, (scale.shape[-3], -1))
    held = scale.transpose(-3, -2)
    codes = torch.empty(old.shape, dtype=torch.int8, device=old.device)
    steps = torch.empty(old.shape[:-1], dtype=torch.bfloat16, device=old.device)
    zeros = torch.empty(old.shape[:-1], dtype=torch.int8, device=old.device)
    rows = max(1, BLOCK_ELEMENTS // (old.shape[-1] * old.shape[-2]))
    blocks = [one.flatten(0, -3).split(rows) for one in (old, held, codes)]
    blocks += [one.flatten(0, -2).split(rows) for one in (steps, zeros)]
    error = squares = 0.0
    for before, grids, *into in zip(*blocks, strict=True):
        weights = grid_values(before, grids)
        *found, least = _fit(weights, grids[..., 0].float(), grid)
        for place, made in zip(into, found, strict=True):
            place.copy_(made)
        error, squares = error + float(least.sum()), squares + float(weights.square().sum())
    return MadeOver(codes.flatten(-2), steps, zeros, error, squares)


def _fit(weights: Tensor, standing: Tensor, grid: WholeGrid) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes, steps, zeros and squared errors of groups [rows, groups, G]."""
    least = torch.full_like(standing, torch.inf)
    codes, step, zero = torch.zeros_like(weights), torch.ones_like(least), torch.zeros_like(least)
    for tried in _steps(weights, standing, grid):
        offset = _zero(weights, tried, grid)
        for fitted in (tried, _least_squares(weights, _round(weights, tried, offset, grid), tried, offset)):
            rounded = _round(weights, fitted, offset, grid)
            error = (whole_values(rounded, fitted, offset) - weights).square_().sum(-1)
            better = error < least
            least, step = torch.where(better, error, least), torch.where(better, fitted, step)
            zero, codes = torch.where(better, offset, zero), torch.where(better[..., None], rounded, codes)
    return codes, step, zero, least


def _steps(weights: Tensor, step: Tensor, grid: WholeGrid) -> Iterator[Tensor]:
    """Steps to try: parts of the one that stands, so that codes may stay, and what the range of the weights asks."""
    parts = range(1, FINEST + 1) if grid.bits > 4 else (1,)
    low, high = weights.amin(-1).clamp(max=0), weights.amax(-1).clamp(min=0)
    reach = (high - low) / LARGEST_CODE if grid.zeros else torch.maximum(-low / -grid.lowest, high / grid.highest)
    narrowed = NARROWINGS if grid.bits == 4 else (1.0,)
    for tried in itertools.chain((step / part for part in parts), (reach * share for share in narrowed)):
        yield _held(tried)


def _held(step: Tensor) -> Tensor:
    """A step as bfloat16 holds it; 1 in the place of nothing."""
    held = step.bfloat16().float()
    return torch.where(held < torch.finfo(torch.bfloat16).tiny, 1.0, held)


def _zero(weights: Tensor, step: Tensor, grid: WholeGrid) -> Tensor:
    """The code that stands for nothing, so that the weights lie in the middle of all codes."""
    if not grid.zeros:
        return torch.zeros_like(step)
    middle = (weights.amin(-1) + weights.amax(-1)) / 2
    return ((grid.lowest + grid.highest) / 2 - middle / step).round_().clamp_(grid.lowest, grid.highest)


def _round(weights: Tensor, step: Tensor, zero: Tensor, grid: WholeGrid) -> Tensor:
    return (weights / step[..., None]).round_().add_(zero[..., None]).clamp_(grid.lowest, grid.highest)


def _least_squares(weights: Tensor, codes: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    """The step that is nearest to the weights with these codes; the one before where all of them stand for nothing."""
    whole = codes - zero[..., None]
    squares = whole.square().sum(-1)
    fitted = (whole * weights).sum(-1) / squares.clamp(min=0.5)
    return torch.where(fitted > torch.finfo(torch.bfloat16).tiny, _held(fitted), step)
