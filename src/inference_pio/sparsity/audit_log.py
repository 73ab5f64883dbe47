"""What audits found: counts, mean and low quantiles of coverage, by head, in bounded memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BINS = 1000
"""Coverage from 0 to 1 is counted in thousandths: quantiles are told to that precision, rounded down."""


class AuditLog:
    """A histogram of coverage for each head.

    >>> log = AuditLog(1)
    >>> log.add(torch.tensor([[0.9995], [1.0], [0.5]]))
    >>> log.quantile(0.05), round(log.mean, 4)
    (0.5, 0.8332)
    """

    @torch.inference_mode(False)  # what was made in inference mode could not be written outside of it
    def __init__(self, heads: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(heads, BINS + 1, dtype=torch.int64, device=device)
        self.sums = torch.zeros(heads, dtype=torch.float64, device=device)

    def lies_in(self, whole: AuditLog, heads: slice) -> None:
        """Keep what is found from now on with that of other layers, of which these are some heads."""
        self.counts = whole.counts[heads].copy_(self.counts)
        self.sums = whole.sums[heads].copy_(self.sums)

    def add(self, coverage: Tensor) -> None:
        """Audited coverage [rows, heads]."""
        places = (coverage * BINS).floor().long().clamp(0, BINS)
        self.counts.scatter_add_(1, places.T.contiguous(), torch.ones_like(places.T.contiguous()))
        self.sums += coverage.double().sum(0)

    @property
    def rows(self) -> int:
        """Audited rows of blocks, over all heads."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / max(1, self.rows))

    def quantile(self, share: float) -> float:
        """The coverage that all but `share` of the audited rows reach."""
        below = self.counts.sum(0).cumsum(0)
        return int((below <= share * below[-1]).sum()) / BINS if below[-1] else 1.0

    def worst_head(self) -> float:
        """The lowest mean coverage of a head."""
        seen = self.counts.sum(1)
        return float((self.sums / seen.clamp(min=1))[seen > 0].min()) if bool((seen > 0).any()) else 1.0

    def to_json(self) -> dict[str, Any]:
        return {
            "audited_rows": self.rows, "coverage_mean": round(self.mean, 5), "coverage_p05": self.quantile(0.05),
            "coverage_p01": self.quantile(0.01), "worst_head_mean": round(self.worst_head(), 5),
        }  # fmt: skip
