"""Decode over chosen pages: estimate, choose so that enough of the attention is kept, audit a share of the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inference_pio.kernels.block_choice import DENSE, Ranked
from inference_pio.kernels.listed_attention import gathered_decode
from inference_pio.kernels.page_estimate import estimate_pages
from inference_pio.kernels.page_summary import PageSummary
from inference_pio.kernels.row_mass import row_mass
from inference_pio.kernels.triton.launch import PAGE
from inference_pio.sparsity.audit_log import AuditLog
from inference_pio.sparsity.backend import TRITON, Attended, choose_backend
from inference_pio.sparsity.coverage_control import CoverageControl, CoverageTarget

if TYPE_CHECKING:
    from inference_pio.kernels.page_list import PageList
    from inference_pio.kernels.triton.page_choice import PageScratch

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
        self.shares = self.control.shares()
        """What the control says since the last audit, at an address that stays: a recorded graph may read it."""
        self._heads, self._group = heads, heads // key_heads
        self._grid = torch.cat((self.control.grid, self.control.grid.new_tensor([DENSE])))
        self._room: tuple[PageList, PageScratch] | None = None

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
        ranked = self._ranked(query[:, :, 0], summary, key.shape[2], scale, starts)
        first = self.steps < FIRST
        if first or self._is_due():
            self._audit(query, key, ranked, scale, starts)
        self.steps += 1
        if first:
            return None
        kept = ranked.kept(self.shares[None, :, None].expand(ranked.before.shape[:-1]))[:, :, 0]
        return kept if self._pays(kept) else None

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, summary: PageSummary, *, scale: float | None = None,
        starts: Tensor | None = None,
    ) -> Attended | None:  # fmt: skip
        """Attention of one new token a row, `query` [B, H, 1, D], over the chosen pages of `key`, `value`
        [B, key heads, L, D]: by our kernels where they serve, and then nothing waits for the device; else as `choose`
        says, by torch's, and None where it says dense."""
        batch, _, length, _ = key.shape
        backend = choose_backend(query, key, value, self.settings.scorer, 1, PAGE)
        visible = batch * key.shape[1] * -(-length // PAGE)
        if backend.name == TRITON:
            from inference_pio.kernels.triton.decode import decode_attention

            starts = None if starts is None else starts.int()
            lengths = torch.full((1,), length, dtype=torch.int32, device=query.device)
            first = self.steps < FIRST
            if first or self._is_due():
                self._audit(query, key, self._ranked(query[:, :, 0], summary, length, scale, starts), scale, starts)
            self.steps += 1
            pages = None if first else self.list_pages(query[:, :, 0], summary, lengths, scale=scale, starts=starts)
            token, keys, values = query[:, :, 0], key.transpose(1, 2), value.transpose(1, 2)
            out = decode_attention(token, keys, values, lengths, starts, pages=pages, scale=scale)[:, :, None]
            return Attended(out, visible if pages is None else pages.counts, visible, backend)
        kept = self.choose(query, key, summary, scale=scale, starts=starts)
        if kept is None:
            return None
        return Attended(gathered_decode(query, key, value, kept, scale=scale, starts=starts), kept, visible, backend)

    def list_pages(
        self, query: Tensor, summary: PageSummary, lengths: Tensor, *, scale: float | None = None,
        starts: Tensor | None = None, written: Tensor | None = None, ahead: int = 0,
    ) -> PageList:  # fmt: skip
        """The pages that `query` [B, H, D] reads of a cache of `lengths` tokens (int32 on the device), in two launches
        and in room of its own: a recorded graph may hold them, with what `shares` holds when it is played. `written`: a
        cache whose last token the summary does not know yet; `ahead`: so many tokens more read by the same pages."""
        from inference_pio.kernels.triton.page_choice import PageScratch, choose_pages, empty_lists

        batch, key_heads, pages, _ = summary.mean.shape
        budget = self._budget()
        if self._room is None or self._room[1].scores.shape != (batch, self._heads, pages):
            most = pages if budget is None else min(budget, pages)
            self._room = (
                empty_lists(batch, key_heads, most, query.device),
                PageScratch.of(batch, self._heads, pages, query.device),
            )
        lists, scratch = self._room
        return choose_pages(
            query, summary, lengths, self.shares, starts=starts, scale=scale, scorer=self.settings.scorer,
            sinks=self.settings.sinks, local=self.settings.local, budget=budget, lists=lists, scratch=scratch,
            written=written, ahead=ahead,
        )  # fmt: skip

    def _budget(self) -> int | None:
        """Pages that a head reads at most: never fewer than are always read."""
        if self.settings.budget is None:
            return None
        return max(self.settings.budget // PAGE, self.settings.sinks + self.settings.local)

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
        budget = self._budget()
        return ranked if budget is None else ranked.at_most(budget)

    def _is_due(self) -> bool:
        """Whether this step is one of the share that is audited: evenly spread, without chance, so without waiting."""
        rate = self.settings.audit_rate
        return int((self.steps + 1) * rate) > int(self.steps * rate)

    def _audit(self, query: Tensor, key: Tensor, ranked: Ranked, scale: float | None, starts: Tensor | None) -> None:
        position = torch.full((1,), key.shape[2] - 1, device=key.device)
        mass = row_mass(query, position, key, block=PAGE, scale=scale, starts=starts)
        mass = mass.view(mass.shape[0], -1, self._group, *mass.shape[2:]).mean(2)
        coverage = ranked.coverage(mass, self._grid.expand(*ranked.before.shape[:-1], -1))[:, :, 0]
        if self.steps:
            place = torch.searchsorted(self._grid, self.shares)
            self.log.add(coverage.gather(2, place.expand(coverage.shape[0], -1)[..., None])[..., 0])
        if self.steps % FIRST == 0:
            self.control.forget()
        self.control.learn(coverage[..., :-1])
        self.shares.copy_(self.control.shares())

    def _pays(self, kept: Tensor) -> bool:
        """Whether few enough pages are kept; told by the shares alone on a GPU, where counting would wait for it."""
        if kept.is_cuda:
            return True
        return float(kept.float().mean()) <= self.settings.dense_above
