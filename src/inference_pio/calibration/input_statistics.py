"""What one input of a layer looks like over all calibration tokens: mean, largest magnitude, Gram matrix."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class InputStatistics:
    """Sums over rows x of width d; `readers` are the layers (or `path[expert]`) that are given these same rows.

    >>> seen = InputStatistics(2)
    >>> seen.add(torch.tensor([[1.0, 2.0], [3.0, -4.0]]))
    >>> seen.mean.tolist(), seen.absmax.tolist(), seen.gram.tolist()
    ([2.0, -1.0], [3.0, 4.0], [[10.0, -10.0], [-10.0, 20.0]])
    """

    width: int
    with_gram: bool = True
    device: torch.device | str = "cpu"
    readers: tuple[str, ...] = ()
    count: int = 0
    total: Tensor = field(init=False, repr=False)
    absmax: Tensor = field(init=False, repr=False)
    gram: Tensor | None = field(init=False, repr=False, default=None)
    """Sum of x xᵀ, float64 [d, d]."""

    def __post_init__(self) -> None:
        self.total = torch.zeros(self.width, dtype=torch.float64, device=self.device)
        self.absmax = torch.zeros(self.width, dtype=torch.float32, device=self.device)
        if self.with_gram:
            self.gram = torch.zeros(self.width, self.width, dtype=torch.float64, device=self.device)

    @property
    def mean(self) -> Tensor:
        """The mean row, float64 [d]."""
        return self.total / max(self.count, 1)

    @property
    def nbytes(self) -> int:
        return statistics_bytes(self.width, self.with_gram)

    def add(self, rows: Tensor) -> None:
        """Count rows [n, d] of any dtype in. The products are taken in float32, the sums in float64."""
        if not rows.shape[0]:
            return
        exact = rows.detach().to(torch.float32)
        self.count += exact.shape[0]
        self.total += exact.sum(0, dtype=torch.float64)
        torch.maximum(self.absmax, exact.abs().amax(0), out=self.absmax)
        if self.gram is not None:
            self.gram += (exact.T @ exact).to(torch.float64)

    def tensors(self) -> dict[str, Tensor]:
        """The sums as tensors, to be kept in a file."""
        kept = {"count": torch.tensor(self.count), "total": self.total, "absmax": self.absmax}
        return kept if self.gram is None else {**kept, "gram": self.gram}

    @classmethod
    def of(cls, tensors: dict[str, Tensor], readers: tuple[str, ...]) -> InputStatistics:
        """The inverse of `tensors()`."""
        made = cls(tensors["total"].numel(), "gram" in tensors, tensors["total"].device, readers, int(tensors["count"]))
        made.total, made.absmax, made.gram = tensors["total"], tensors["absmax"], tensors.get("gram")
        return made


def statistics_bytes(width: int, with_gram: bool) -> int:
    """Bytes that the statistics of one input take."""
    return width * 12 + (width * width * 8 if with_gram else 0)
