"""The linear map that comes closest to outputs, by sums of products of inputs and outputs. All is in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from inference_pio.kernels.channel_removal import DAMPING


def naive_linear_fit(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and bias [out] of least squares over rows, by torch's solver, undamped."""
    rows = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1).double()
    solved = torch.linalg.lstsq(rows, outputs.double()).solution.T
    return solved[:, :-1], solved[:, -1]


class LinearFit:
    """Rows are added batch by batch; `solve` gives weight and bias.

    >>> fit = LinearFit()
    >>> fit.add(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [3.0], [5.0]]))
    >>> [found.round(decimals=1).flatten().tolist() for found in fit.solve(damping=0)]
    [[2.0], [1.0]]
    """

    def __init__(self) -> None:
        self._gram: Tensor | None = None
        self._cross: Tensor | None = None

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Inputs [rows, in] and what they led to [rows, out]."""
        rows = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1).double()
        gram, cross = rows.T @ rows, outputs.double().T @ rows
        self._gram = gram if self._gram is None else self._gram + gram
        self._cross = cross if self._cross is None else self._cross + cross

    def solve(self, damping: float = DAMPING) -> tuple[Tensor, Tensor]:
        """Least squares; `damping`, in parts of the inputs' mean power, holds weights down where inputs are few."""
        assert self._gram is not None
        assert self._cross is not None
        power = self._gram.diagonal()[:-1].mean().clamp(min=torch.finfo(torch.float32).tiny)
        held = torch.full_like(self._gram.diagonal(), damping) * power
        held[-1] = 0  # a mean is no weight
        solved = torch.linalg.solve(self._gram + held.diag(), self._cross.T).T
        return solved[:, :-1], solved[:, -1]


def naive_added_map(inputs: Tensor, missing: Tensor, damping: float = DAMPING) -> Tensor:
    """`added_map` by torch's solver, over rows of which the last hold weights down."""
    rows, width = inputs.double(), inputs.shape[1]
    held = (damping * rows.square().sum() / width).sqrt() * torch.eye(width, dtype=torch.float64)
    wanted = torch.cat([missing.double(), missing.new_zeros(width, missing.shape[1]).double()])
    return torch.linalg.lstsq(torch.cat([rows, held]), wanted).solution.T


def added_map(inputs: Tensor, missing: Tensor, damping: float = DAMPING) -> Tensor:
    """The weight [out, in] that, added to one, gives of inputs [rows, in] the most of what is missing [rows, out].

    >>> added_map(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [6.0]]), damping=0).round(decimals=3).tolist()
    [[3.0]]
    """
    fit = AddedMap()
    fit.add(inputs, missing)
    return fit.solve(damping)


class AddedMap:
    """`added_map` of rows that are added batch by batch."""

    def __init__(self) -> None:
        self._gram: Tensor | None = None
        self._cross: Tensor | None = None

    def add(self, inputs: Tensor, missing: Tensor) -> None:
        """Inputs [rows, in] and what is missing behind them [rows, out]."""
        rows = inputs.double()
        gram, cross = rows.T @ rows, rows.T @ missing.double()
        self._gram = gram if self._gram is None else self._gram + gram
        self._cross = cross if self._cross is None else self._cross + cross

    def solve(self, damping: float = DAMPING) -> Tensor:
        assert self._gram is not None
        assert self._cross is not None
        power = self._gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
        unit = torch.eye(len(self._gram), dtype=self._gram.dtype, device=self._gram.device)
        held = self._gram + max(damping, torch.finfo(torch.float64).eps) * power * unit
        return torch.linalg.solve(held, self._cross).T
