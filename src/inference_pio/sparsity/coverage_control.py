"""How much of an estimate each head must keep so that enough of its true attention is kept: learned from audits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inference_pio.kernels.block_choice import DENSE

SHARES = (
    *(0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.975, 0.98, 0.985, 0.99, 0.993, 0.995, 0.997),
    *(0.998, 0.999, 0.9995, 0.9999),
)
"""Shares of the estimate that a head may keep; past the last one it is dense."""
MEMORY = 16
"""Rows that all earlier calls weigh together against those of the next one: heads follow what they read."""


@dataclass(frozen=True)
class CoverageTarget:
    """`floor`: what all but `exceptions` of the audited rows of blocks keep; `mean`: what they keep on average."""

    floor: float
    exceptions: float = 0.05

    @property
    def mean(self) -> float:
        """
        >>> round(CoverageTarget(0.95).mean, 3)
        0.98
        """
        return 1.0 - 0.4 * (1.0 - self.floor)


class CoverageControl:
    """For each head and each share it may keep: how much true attention audited rows then kept.

    >>> control = CoverageControl(1, CoverageTarget(0.95))
    >>> float(control.shares()[0]) == DENSE  # nothing is known yet
    True
    """

    @torch.inference_mode(False)  # what was made in inference mode could not be written outside of it
    def __init__(self, heads: int, target: CoverageTarget, device: torch.device | str = "cpu") -> None:
        self.target = target
        self.grid = torch.tensor(SHARES, device=device)
        self._rows = torch.zeros(heads, 1, device=device)
        self._kept = torch.zeros(heads, len(SHARES), device=device)
        self._low = torch.zeros(heads, len(SHARES), device=device)

    def lies_in(self, whole: CoverageControl, heads: slice) -> None:
        """Keep what is learned from now on with that of other layers, of which these are some heads."""
        for name in ("_rows", "_kept", "_low"):
            setattr(self, name, getattr(whole, name)[heads].copy_(getattr(self, name)))

    def forget(self) -> None:
        """Let what was learned weigh less than what comes."""
        weight = (MEMORY / self._rows.clamp(min=MEMORY)).clone()
        for total in (self._rows, self._kept, self._low):
            total.mul_(weight)

    def learn(self, coverage: Tensor) -> None:
        """Take in what audited rows kept at each share: [rows, heads, shares]."""
        self._rows += coverage.shape[0]
        self._kept += coverage.sum(0)
        self._low += (coverage < self.target.floor).sum(0)

    def shares(self) -> Tensor:
        """The least share of the estimate that holds the target, or DENSE: float32 [heads]."""
        rows = self._rows.clamp(min=1e-6)
        holds = (self._kept / rows >= self.target.mean) & (self._low / rows <= self.target.exceptions)
        holds = holds & (self._rows >= 1.0)
        least = holds.float().argmax(-1)
        return torch.where(holds.any(-1), self.grid[least], DENSE)
