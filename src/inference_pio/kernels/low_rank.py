"""Matrices as products of two smaller ones, with the least loss for their inputs and for the outputs that count.

Shapes: `weight` [out, in]; `inputs` [in, in] and `outputs` [out, out] are means of x xᵀ over inputs, and of g gᵀ over
the gradients that a loss has for the outputs. All is computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_SHARE = 1e-6
"""What a mean of products is drawn towards its mean diagonal at least, so that it can be factored."""
LEAST_PULL = 1e-3
"""How much a factor that is fitted again stays what it was, in parts of the mean of what it is given."""


@dataclass(frozen=True)
class Spectrum:
    """A weight as `left` [out, k] diag(`values` [k]) `right` [k, in], the parts that lose most first.

    Where all parts behind the first r are left out, the expected square of what the outputs lose, each in the units of
    `outputs`, is the sum of the squares of their values.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    def error(self, rank: int) -> float:
        """What is lost at a rank."""
        return float(self.values[rank:].square().sum())

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """The best two factors of a rank: [out, rank] and [rank, in], equal in size whatever units were weighed in, so
        that half precision holds both."""
        root = self.values[:rank].sqrt()
        left, right = self.left[:, :rank] * root, root[:, None] * self.right[:rank]
        level = (right.norm() / left.norm()).sqrt()
        level = torch.where(level.isfinite() & (level > 0), level, 1.0)
        return left * level, right / level


def naive_truncation(weight: Tensor, inputs: Tensor, outputs: Tensor, rank: int) -> tuple[Tensor, float]:
    """The best weight of a rank and its loss, from the definition: by symmetric roots that are inverted as they are."""

    def root(square: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(square.double())
        return vectors @ torch.diag(values.sqrt()) @ vectors.T

    before, behind = root(inputs), root(outputs)
    left, values, right = torch.linalg.svd(behind @ weight.double() @ before)
    best = left[:, :rank] @ torch.diag(values[:rank]) @ right[:rank]
    found = torch.linalg.inv(behind) @ best @ torch.linalg.inv(before)
    lost = weight.double() - found
    return found, float(torch.trace(outputs.double() @ lost @ inputs.double() @ lost.T))


@torch.no_grad()
def spectrum(weight: Tensor, inputs: Tensor | None = None, outputs: Tensor | None = None) -> Spectrum:
    """The parts of a weight; without `inputs` or `outputs` all of them count alike. `outputs` [out] is a diagonal.

    >>> weight = torch.diag(torch.tensor([3.0, 2.0]))
    >>> spectrum(weight).values.tolist(), spectrum(weight, torch.diag(torch.tensor([1.0, 25.0]))).values.tolist()
    ([3.0, 2.0], [10.0, 3.0])
    """
    exact = weight.double()
    before = None if inputs is None else square_root(inputs)
    behind = None if outputs is None or outputs.dim() == 1 else square_root(outputs)
    scale = None if outputs is None or outputs.dim() == 2 else _positive(outputs).sqrt()
    seen = exact if before is None else exact @ before
    seen = seen if behind is None else behind.T @ seen
    seen = seen if scale is None else scale[:, None] * seen
    left, values, right = _parts(seen)
    left = left if scale is None else left / scale[:, None]
    left = left if behind is None else torch.linalg.solve_triangular(behind.T, left, upper=True)
    right = right if before is None else torch.linalg.solve_triangular(before, right, upper=False, left=False)
    return Spectrum(left, values, right)


def shrunk(mean: Tensor, rows: int) -> Tensor:
    """A mean of products [n, n] over `rows` inputs, drawn towards its mean diagonal as far as so few leave it in doubt.

    The share is the oracle-approximating one (Chen, Wiesel, Eldar and Hero 2010).

    >>> shrunk(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), rows=1).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    exact = mean.double()
    width = exact.shape[0]
    level, power = exact.diagonal().mean(), float(exact.square().sum())
    square = float(level * width) ** 2
    apart = (max(rows, 1) + 1 - 2 / width) * (power - square / width)
    share = min(1.0, ((1 - 2 / width) * power + square) / apart) if apart > 0 else 1.0
    share = max(share, LEAST_SHARE)
    return (1 - share) * exact + share * level * torch.eye(width, dtype=exact.dtype, device=exact.device)


@torch.no_grad()
def pivoted(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same product of `left` [out, r] and `right` [r, in], with r² numbers fewer: r columns of it are its left
    factor, and the others are made of these.

    Gives an `order` of the columns, the first r of them as [out, r], and `rest` [r, in - r]: in that order the product
    is [columns, columns @ rest]. Columns are chosen by partial pivoting, so that no number of `rest` is large.

    >>> order, columns, rest = pivoted(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 4.0, 2.0]]))
    >>> order.tolist(), columns.tolist(), rest.tolist()
    ([1, 0, 2], [[4.0], [8.0]], [[0.25, 0.5]])
    """
    rank = right.shape[0]
    basis, _ = torch.linalg.qr(right.double().T)
    packed, swaps = torch.linalg.lu_factor(basis)
    order = _order_of(swaps, basis.shape[0])
    first, behind = packed[:rank], packed[rank:]
    rest = torch.linalg.solve_triangular(first, behind, upper=False, left=False, unitriangular=True).T
    columns = left.double() @ right.double()[:, order[:rank]]
    return order, columns, rest


def refitted_factor(factor: Tensor, wanted: Tensor, given: Tensor, rows: int) -> Tensor:
    """The `factor` [out, r] that comes closest to outputs y from what it is given, t: `wanted` [out, r] is the sum of
    y tᵀ, `given` [r, r] that of t tᵀ, over `rows` tokens, which pull it from what it was as far as they are many.

    >>> refitted_factor(torch.tensor([[1.0]]), torch.tensor([[8.0]]), torch.tensor([[4.0]]), rows=10**9)
    tensor([[1.9990]])
    """
    rank = given.shape[0]
    drawn = max(LEAST_PULL, rank / (rank + rows)) * given.diagonal().double().mean()
    inner = given.double() + drawn * torch.eye(rank, dtype=torch.float64, device=given.device)
    made, _ = torch.linalg.solve_ex(inner, (wanted.double() + drawn * factor.double()).T)  # it may be given nothing
    made = made.T
    return made.to(factor.dtype).contiguous() if bool(made.isfinite().all()) else factor


def _parts(seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _parts_by_products(seen) if seen.is_cuda else torch.linalg.svd(seen, full_matrices=False)


def _parts_by_products(seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular values and vectors by the products of columns: on a GPU a tenth of the time that its SVD takes
    (predicted). Values below 1e-8 of the largest are not told apart; what they stand for is nothing either way."""
    if seen.shape[0] < seen.shape[1]:
        left, values, right = _parts_by_products(seen.T)
        return right.T, values, left.T
    squares, vectors = torch.linalg.eigh(seen.T @ seen)
    values, vectors = squares.flip(0).clamp(min=0).sqrt(), vectors.flip(1)
    left = seen @ vectors
    return torch.where(values > 0, left / values, 0.0), values, vectors.T


def _order_of(swaps: Tensor, count: int) -> Tensor:
    """The order that LAPACK's row swaps, counted from one, lead to."""
    order = list(range(count))
    for place, other in enumerate(swaps.tolist()):
        order[place], order[other - 1] = order[other - 1], order[place]
    return torch.tensor(order, device=swaps.device)


def square_root(square: Tensor) -> Tensor:
    """A lower triangular L with L Lᵀ = square; where numbers are too far apart for that, of what they are near to."""
    exact = square.double()
    factor, wrong = torch.linalg.cholesky_ex(exact)
    if not int(wrong):
        return factor
    values, vectors = torch.linalg.eigh(exact)
    values = values.clamp(min=LEAST_SHARE * max(float(values.mean()), torch.finfo(torch.float32).tiny))
    _, upper = torch.linalg.qr((vectors * values.sqrt()).T)
    lower = upper.T
    return lower * torch.where(lower.diagonal() < 0, -1.0, 1.0)


def _positive(diagonal: Tensor) -> Tensor:
    exact = diagonal.double()
    return exact.clamp(min=LEAST_SHARE * max(float(exact.mean()), torch.finfo(torch.float32).tiny))
