"""Convolution kernels as a smaller kernel between two changes of channels: Tucker's form over outputs and inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDS = 10
ENOUGH = 1e-9
"""A round that lessens the error by a smaller share of the whole is the last."""


@dataclass(frozen=True)
class Tucker:
    """`core` [r, s, ...] between `out_of` [out, r] and `into` [s, in], whose columns and rows are orthonormal.

    `error` is the sum of squares that the product lacks: what the kernel holds less what the core holds.
    """

    out_of: Tensor
    core: Tensor
    into: Tensor
    error: float


def naive_product(found: Tucker) -> Tensor:
    """The kernel that the three parts stand for, from the definition: [out, in, ...]."""
    kernel = found.core.new_zeros(len(found.out_of), found.into.shape[1], *found.core.shape[2:])
    for row in range(found.core.shape[0]):
        for column in range(found.core.shape[1]):
            outer = torch.outer(found.out_of[:, row], found.into[column])
            kernel += outer.reshape(*outer.shape, *[1] * (kernel.dim() - 2)) * found.core[row, column]
    return kernel


@torch.no_grad()
def tucker(kernel: Tensor, outputs: int, inputs: int) -> Tucker:
    """The parts of a kernel [out, in, ...] with `outputs` and `inputs` channels in its core, in float64.

    Each side's channels begin as the leading singular vectors and are improved in turn (De Lathauwer, De Moor and
    Vandewalle's orthogonal iteration).

    >>> kernel = torch.ones(4, 3, 2, 2)
    >>> found = tucker(kernel, 1, 1)
    >>> tuple(found.core.shape), round(found.error, 6)
    ((1, 1, 2, 2), 0.0)
    """
    exact = kernel.double()
    whole = float(exact.square().sum())
    into = _leading(exact.transpose(0, 1), inputs)
    out_of, before = exact.new_zeros(0), float("inf")
    for _ in range(ROUNDS):
        out_of = _leading(_changed(exact, into, 1), outputs)
        into = _leading(_changed(exact, out_of, 0).transpose(0, 1), inputs)
        core = _changed(_changed(exact, into, 1), out_of, 0)
        error = max(whole - float(core.square().sum()), 0.0)
        if before - error <= ENOUGH * whole:
            break
        before = error
    return Tucker(out_of, core, into.T.contiguous(), error)


def tucker_numbers(outputs: int, inputs: int, taps: int, core: tuple[int, int]) -> int:
    """The numbers of the three parts of a kernel of so many taps.

    >>> tucker_numbers(8, 4, 9, (2, 3))
    82
    """
    return outputs * core[0] + core[0] * core[1] * taps + core[1] * inputs


def _leading(unfolded: Tensor, count: int) -> Tensor:
    """The leading left singular vectors of a tensor whose first axis stands for rows: [rows, count]."""
    rows = unfolded.reshape(unfolded.shape[0], -1)
    _, vectors = torch.linalg.eigh(rows @ rows.T)
    return vectors.flip(1)[:, :count]


def _changed(kernel: Tensor, basis: Tensor, axis: int) -> Tensor:
    """A kernel with one axis of channels seen in a basis [channels, count]."""
    return torch.movedim(torch.tensordot(kernel, basis, dims=([axis], [0])), -1, axis)
