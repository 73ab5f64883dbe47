"""Decode over chosen pages: estimate, choose so that enough of the attention is kept, audit a share of the steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inference_pio.kernels.block_choice import DENSE, Ranked
from inference_pio.kernels.page_estimate import estimate_pages
from inference_pio.kernels.page_summary import PageSummary
from inference_pio.kernels.row_mass import row_mass
from inference_pio.kernels.triton.launch import PAGE
from inference_pio.sparsity.audit_log import AuditLog
from inference_pio.sparsity.coverage_control import CoverageControl, CoverageTarget

FIRST = 8
"""Steps of each sequence that are audited and dense: before them nothing is known of its heads."""


@dataclass(frozen=True)
class DecodeSettings:
    """`budget`: tokens that a head reads at most. The first page and the `local` last ones are always read."""

    coverage: float = 0.95
    scorer: str = "mean"
    budget: int | None = None
    sinks: int = 1
    local: int = 2
    audit_rate: float = 1 / 64
    dense_above: float = 0.75


class AuditedDecode:
    """The decode of one layer: what its key heads have shown so far, and the choice for the next token."""

    def __init__(self, heads: int, key_heads: int, settings: DecodeSettings, device: torch.device) -> None:
        self.settings = settings
        self.control = CoverageControl(key_heads, CoverageTarget(settings.coverage), device)
        self.log = AuditLog(key_heads, device)
        self.steps = 0
        self._group = heads // key_heads

    def begin(self) -> None:
        """Another sequence begins: its first steps are audited again; what the heads have shown stays."""
        self.steps = 0

    def choose(
        self, query: Tensor, key: Tensor, summary: PageSummary, *, scale: float | None = None,
        starts: Tensor | None = None,
    ) -> Tensor | None:  # fmt: skip
        """The pages that `query` [B, H, 1, D] reads of `key` [B, key heads, L, D]: boolean [B, key heads, pages].

        None where the step is better dense: at the start, and where too many pages would be kept.
        """
        length = key.shape[2]
        ranked = self._ranked(query[:, :, 0], summary, length, scale, starts)
        first = self.steps < FIRST
        if first or self._is_due():
            self._audit(query, key, ranked, scale, starts)
        self.steps += 1
        if first:
            return None
        kept = ranked.kept(self.control.shares()[None, :, None].expand(ranked.before.shape[:-1]))[:, :, 0]
        return kept if self._pays(kept) else None

    def _ranked(
        self, query: Tensor, summary: PageSummary, length: int, scale: float | None, starts: Tensor | None
    ) -> Ranked:
        estimate = estimate_pages(query, summary, length, scale=scale, starts=starts, scorer=self.settings.scorer)[
            :, :, None
        ]
        first = torch.arange(0, length, PAGE, device=query.device)
        number = torch.arange(first.numel(), device=query.device)
        begin = torch.zeros(1, 1, dtype=torch.int64, device=query.device) if starts is None else starts[:, None].long()
        visible = first + PAGE > begin
        fixed = (number >= first.numel() - self.settings.local) | (
            (number >= begin // PAGE) & (number < begin // PAGE + self.settings.sinks)
        )
        ranked = Ranked.of(estimate, fixed[:, None, None], visible[:, None, None])
        if self.settings.budget is None:
            return ranked
        most = max(self.settings.budget // PAGE, self.settings.sinks + self.settings.local)
        return ranked.at_most(most)

    def _is_due(self) -> bool:
        """Whether this step is one of the share that is audited: evenly spread, without chance, so without waiting."""
        rate = self.settings.audit_rate
        return int((self.steps + 1) * rate) > int(self.steps * rate)

    def _audit(self, query: Tensor, key: Tensor, ranked: Ranked, scale: float | None, starts: Tensor | None) -> None:
        position = torch.tensor([key.shape[2] - 1], device=key.device)
        mass = row_mass(query, position, key, block=PAGE, scale=scale, starts=starts)
        mass = mass.view(mass.shape[0], -1, self._group, *mass.shape[2:]).mean(2)
        grid = torch.cat((self.control.grid, self.control.grid.new_tensor([DENSE])))
        coverage = ranked.coverage(mass, grid.expand(*ranked.before.shape[:-1], -1))[:, :, 0]
        if self.steps:
            place = torch.searchsorted(grid, self.control.shares())
            self.log.add(coverage.gather(2, place.expand(coverage.shape[0], -1)[..., None])[..., 0])
        if self.steps % FIRST == 0:
            self.control.forget()
        self.control.learn(coverage[..., :-1])

    def _pays(self, kept: Tensor) -> bool:
        """Whether few enough pages are kept; told by the shares alone on a GPU, where counting would wait for it."""
        if kept.is_cuda:
            return True
        return float(kept.float().mean()) <= self.settings.dense_above
