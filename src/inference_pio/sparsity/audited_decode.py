"""Decode over chosen pages: estimate, choose so that enough of the attention is kept, audit a share of the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inference_pio.kernels.block_choice import DENSE, Ranked
from inference_pio.kernels.listed_attention import gathered_decode
from inference_pio.kernels.page_choice import naive_choose_pages, rank_pages
from inference_pio.kernels.page_list import PageList
from inference_pio.kernels.page_summary import PageSummary
from inference_pio.kernels.row_mass import last_token_mass, row_mass
from inference_pio.kernels.triton.attention_support import supports_decode
from inference_pio.kernels.triton.launch import PAGE
from inference_pio.sparsity.audit_log import AuditLog
from inference_pio.sparsity.backend import TRITON, Attended, choose_backend
from inference_pio.sparsity.coverage_control import CoverageControl, CoverageTarget

if TYPE_CHECKING:
    from inference_pio.kernels.triton.page_choice import PageScratch

FIRST = 8
"""Audits of each sequence before which its steps are dense: nothing is known of its heads."""


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


@dataclass(frozen=True)
class ListRoom:
    """Where lists are left, for (rows, pages); `scratch` where our kernels make them."""

    lists: PageList
    scratch: PageScratch | None
    of: tuple[int, int]

    @property
    def nbytes(self) -> int:
        scores = 0 if self.scratch is None else self.scratch.scores.nbytes
        return self.lists.counts.nbytes + self.lists.indices.nbytes + scores


class AuditedDecode:
    """The decode of one layer: what its key heads have shown so far, and the choice for the next token."""

    @torch.inference_mode(False)
    def __init__(self, heads: int, key_heads: int, settings: DecodeSettings, device: torch.device) -> None:
        self.settings = settings
        self.control = CoverageControl(key_heads, CoverageTarget(settings.coverage), device)
        self.log = AuditLog(key_heads, device)
        self.steps = self.audits = 0
        self.shares = self.control.shares()
        """What the control says since the last audit, at an address that stays: a recorded graph may read it."""
        self._heads, self._group = heads, heads // key_heads
        self._grid = torch.cat((self.control.grid, self.control.grid.new_tensor([DENSE])))
        self._room: ListRoom | None = None
        self._parts: tuple[AuditedDecode, ...] = ()
        self._whole: AuditedDecode | None = None

    @torch.inference_mode(False)
    def joined(self, others: Sequence[AuditedDecode]) -> AuditedDecode:
        """One for the heads of this layer and of the `others`, which are audited together: what each has learned and
        learns lies in one place for both. Asked again for the same layers, the same one."""
        parts = (self, *others)
        if self._whole is not None and self._whole._parts == parts:
            return self._whole
        whole = AuditedDecode(
            sum(part._heads for part in parts), sum(len(part.shares) for part in parts), self.settings,
            self.shares.device,
        )  # fmt: skip
        whole._parts, first = parts, 0
        for part in parts:
            heads = slice(first, first + len(part.shares))
            part.control.lies_in(whole.control, heads)
            part.log.lies_in(whole.log, heads)
            part.shares = whole.shares[heads].copy_(part.shares)
            part._whole, first = whole, heads.stop
        return whole

    def begin(self) -> None:
        """Another sequence begins: its first steps are audited again; what the heads have shown stays."""
        self.steps = self.audits = 0

    @property
    def dense_above(self) -> float:
        return self.settings.dense_above

    @property
    def is_learning(self) -> bool:
        """Whether this sequence's steps are dense yet."""
        return self.audits < FIRST

    def is_due(self, steps: int = 1) -> bool:
        """Whether one of the next steps is among the share that is audited: evenly spread, without chance, so without
        waiting."""
        rate = self.settings.audit_rate
        return self.is_learning or int((self.steps + steps) * rate) > int(self.steps * rate)

    def choose(
        self, query: Tensor, key: Tensor, summary: PageSummary, *, scale: float | None = None,
        starts: Tensor | None = None,
    ) -> Tensor | None:  # fmt: skip
        """The pages that `query` [B, H, 1, D] reads of `key` [B, key heads, L, D]: boolean [B, key heads, pages].

        None where the step is better dense: at the start, and where too many pages would be kept.
        """
        ranked = self._ranked(query[:, :, 0], summary, key.shape[2], scale, starts)
        first = self.is_learning
        if self.is_due():
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
            first = self.is_learning
            if self.is_due():
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
        starts: Tensor | None = None, written: Tensor | None = None, ahead: int = 0, room: ListRoom | None = None,
    ) -> PageList:  # fmt: skip
        """The pages that `query` [B, H, D] reads of a cache of `lengths` tokens (int32 on the device), in two launches.
        In a `room` of its own a recorded graph may hold them, with what `shares` holds when it is played. `written`: a
        cache whose last token the summary does not know yet; `ahead`: so many tokens more read by the same pages. Where
        our kernels do not serve, the host is asked for the length."""
        settings = self.settings
        given: dict[str, Any] = {
            "starts": starts, "scale": scale, "scorer": settings.scorer, "sinks": settings.sinks,
            "local": settings.local, "budget": self._budget(), "written": written, "ahead": ahead,
        }  # fmt: skip
        if room is None:
            if self._room is None or self._room.of != (len(query), summary.mean.shape[2]):
                self._room = self.room(query, summary)
            room = self._room
        if room.scratch is None:
            return naive_choose_pages(query, summary, int(lengths), self.shares, lists=room.lists, **given)
        from inference_pio.kernels.triton.page_choice import choose_pages

        return choose_pages(query, summary, lengths, self.shares, lists=room.lists, scratch=room.scratch, **given)

    @torch.inference_mode(False)
    def room(self, query: Tensor, summary: PageSummary) -> ListRoom:
        """Room for lists of the pages of a `summary`, and for the kernels that make them, where these serve."""
        batch, key_heads, pages, _ = summary.mean.shape
        budget = self._budget()  # one more: the page of tokens to come, where all others are always read
        lists = PageList.empty(batch, key_heads, pages if budget is None else min(budget + 1, pages), query.device)
        keys, scratch = summary.minimum.transpose(1, 2), None
        if supports_decode(query, keys, keys, lists.counts.flatten()[:1]):
            from inference_pio.kernels.triton.page_choice import PageScratch

            scratch = PageScratch.of(batch, self._heads, pages, query.device)
        return ListRoom(lists, scratch, (batch, pages))

    def audit_layers(
        self, queries: Tensor, keys: Sequence[Tensor], summary: PageSummary, *, scale: float | None = None,
        starts: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Look at what a step keeps in all layers that are joined here, and learn from it: `queries`
        [layers, B, H, D], of each layer `keys` [B, key heads, L, D], and a `summary` of [layers * B, ...]."""
        layers, batch, length = *queries.shape[:2], keys[0].shape[2]
        begins = None if starts is None else starts.repeat(layers)
        ranked = self._ranked(queries.flatten(0, 1), summary, length, scale, begins)
        mass = last_token_mass(queries, keys, block=PAGE, scale=scale, starts=starts)
        coverage = ranked.coverage(mass.flatten(0, 1)[:, :, None], self._grid.expand(*ranked.before.shape[:-1], -1))
        of_layers = coverage.view(layers, batch, *coverage.shape[1:])[:, :, :, 0]
        self._learn(of_layers.transpose(0, 1).flatten(1, 2))

    def _budget(self) -> int | None:
        """Pages that a head reads at most: never fewer than are always read."""
        if self.settings.budget is None:
            return None
        return max(self.settings.budget // PAGE, self.settings.sinks + self.settings.local)

    def _ranked(
        self, query: Tensor, summary: PageSummary, length: int, scale: float | None, starts: Tensor | None
    ) -> Ranked:
        settings = self.settings
        return rank_pages(
            query, summary, length, starts=starts, scale=scale, scorer=settings.scorer, sinks=settings.sinks,
            local=settings.local, budget=self._budget(),
        )  # fmt: skip

    def _audit(self, query: Tensor, key: Tensor, ranked: Ranked, scale: float | None, starts: Tensor | None) -> None:
        position = torch.full((1,), key.shape[2] - 1, device=key.device)
        mass = row_mass(query, position, key, block=PAGE, scale=scale, starts=starts)
        mass = mass.view(mass.shape[0], -1, self._group, *mass.shape[2:]).mean(2)
        self._learn(ranked.coverage(mass, self._grid.expand(*ranked.before.shape[:-1], -1))[:, :, 0])

    def _learn(self, coverage: Tensor) -> None:
        """What audited rows keep at each share, and whole: [rows, key heads, shares]."""
        if self.audits:
            place = torch.searchsorted(self._grid, self.shares)
            self.log.add(coverage.gather(2, place.expand(coverage.shape[0], -1)[..., None])[..., 0])
        if self.audits % FIRST == 0:
            self.control.forget()
        self.control.learn(coverage[..., :-1])
        self.shares.copy_(self.control.shares())
        self.audits += 1

    def _pays(self, kept: Tensor) -> bool:
        """Whether few enough pages are kept; told by the shares alone on a GPU, where counting would wait for it."""
        if kept.is_cuda:
            return True
        return float(kept.float().mean()) <= self.settings.dense_above
