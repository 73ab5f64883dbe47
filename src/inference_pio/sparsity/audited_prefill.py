"""Prefill over chosen blocks: estimate, audit a few rows of blocks exactly, choose so that they keep enough, attend."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference_pio.kernels.block_choice import DENSE, Ranked, fixed_blocks, seen_blocks
from inference_pio.kernels.block_estimate import ESTIMATES, last_positions, span_scores
from inference_pio.kernels.block_sparse import BlockList
from inference_pio.kernels.listed_attention import gathered_attention
from inference_pio.kernels.row_mass import row_mass
from inference_pio.sparsity.audit_log import AuditLog
from inference_pio.sparsity.backend import TRITON, Attended, choose_backend
from inference_pio.sparsity.coverage_control import CoverageControl, CoverageTarget

ROWS_PER_BLOCK = 8
"""Queries of an audited block that are looked at; they stand for the block's 64 or 128."""
FEWEST, FIRST = 16, 32
"""Blocks of queries audited in a call, and in the first one, when nothing is known of a head."""


@dataclass(frozen=True)
class PrefillSettings:
    """`coverage` and `audit_rate` as the user gives them; `dense_above`: a head of more estimated density is dense.

    The last `ending` queries see all: what is said next hangs on few of them, and a mean over 64 hides these.
    """

    coverage: float = 0.95
    scorer: str = "mean"
    query_block: int = 128
    key_block: int = 64
    sinks: int = 1
    local: int = 2
    ending: int = 128
    audit_rate: float = 1 / 64
    dense_above: float = 0.75
    seed: int = 0


class AuditedPrefill:
    """The prefill of one layer: what its heads have shown so far, and the choice for the next call."""

    def __init__(self, heads: int, settings: PrefillSettings, device: torch.device) -> None:
        self.settings = settings
        self.control = CoverageControl(heads, CoverageTarget(settings.coverage), device)
        self.log = AuditLog(heads, device)
        self.calls = 0
        self._chance = torch.Generator().manual_seed(settings.seed)
        self._grid = torch.cat((self.control.grid, self.control.grid.new_tensor([DENSE])))
        self._seen: tuple[tuple[int, ...], Tensor] | None = None

    def choose(self, query: Tensor, key: Tensor, *, scale: float | None = None, starts: Tensor | None = None) -> Choice:
        """What the queries [B, H, S, D] keep of the keys [B, key heads, L, D], the last query standing at the last key.

        Half of the audited rows teach before the choice, the other half measures it, and teaches the next one.
        """
        settings, device = self.settings, query.device
        sizes = (query.shape[2], key.shape[2], settings.query_block, settings.key_block)
        estimate = ESTIMATES[settings.scorer](
            query, key, query_block=settings.query_block, key_block=settings.key_block, scale=scale, starts=starts
        )
        fixed = fixed_blocks(
            *sizes, device=device, sinks=settings.sinks, local=settings.local, ending=settings.ending, starts=starts
        )
        ranked = Ranked.of(estimate, fixed, seen_blocks(*sizes, starts=starts, device=device))
        blind = self._blind(query, key, 0 if starts is None else int(starts.max()))
        audited = self._sample(query.shape[2], blind).to(device)
        rows, positions = self._audited_rows(query, key, audited)
        mass = _by_block(row_mass(rows, positions, key, block=settings.key_block, scale=scale, starts=starts))
        coverage = ranked.rows(audited).coverage(mass, self._grid)
        tells = self._choosing(query.shape[2]) > blind
        shares = self._learn(coverage, lambda shares: self._gated(ranked, shares), tells)
        kept = ranked.kept(shares[None, :, None].expand(ranked.before.shape[:-1]))
        return Choice(kept, ranked.visible, settings.query_block, settings.key_block)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, starts: Tensor | None = None
    ) -> Attended | None:
        """Attention of `query` [B, H, S, D] over what is chosen of `key`, `value` [B, key heads, L, D]: by our kernels
        where they serve, and then nothing waits for the device; else as `choose` says, by torch's, and None where it
        spreads so wide that dense attention is faster."""
        settings = self.settings
        backend = choose_backend(query, key, value, settings.scorer, settings.query_block, settings.key_block)
        if backend.name == TRITON:
            from inference_pio.kernels.triton.flash import flash_attention

            starts = None if starts is None else starts.int()
            lists = self.list_blocks(query, key, scale=scale, starts=starts)
            out = flash_attention(query, key, value, lists=lists, scale=scale, starts=starts)
            return Attended(out, lists.counts, self._visible(query, key, starts), backend)
        choice = self.choose(query, key, scale=scale, starts=starts)
        kept, visible = choice.sizes()
        if kept > settings.dense_above * visible:
            return None
        out = gathered_attention(query, key, value, choice.lists(), scale=scale, starts=starts)
        return Attended(out, kept, visible, backend)

    def list_blocks(
        self, query: Tensor, key: Tensor, *, scale: float | None = None, starts: Tensor | None = None
    ) -> BlockList:
        """The lists that `choose` would make, by our kernels, from means: nothing waits for the device."""
        from inference_pio.kernels.triton.audited_coverage import audited_coverage
        from inference_pio.kernels.triton.block_choice import choose_blocks
        from inference_pio.kernels.triton.row_mass import row_weights

        settings = self.settings
        scores = span_scores(query, key, scale=scale, starts=starts)
        audited = self._sample_on_device(query, key, starts)
        rows, positions = self._audited_rows(query, key, audited)
        weights = row_weights(rows, positions, key, block=settings.key_block, scale=scale, starts=starts)
        sizes: dict[str, Any] = {
            "queries": query.shape[2], "keys": key.shape[2], "query_block": settings.query_block,
            "key_block": settings.key_block, "sinks": settings.sinks, "local": settings.local,
            "ending": settings.ending,
        }  # fmt: skip
        coverage = audited_coverage(scores, weights, audited, self._grid, **sizes, starts=starts)
        choose: Callable[..., BlockList] = functools.partial(choose_blocks, scores, **sizes, starts=starts)
        found: list[BlockList] = []

        def gate(shares: Tensor) -> Tensor:
            """Lists for the shares, and of heads that would keep too much, dense ones."""
            lists = choose(shares)
            density = lists.counts.sum((0, 2)) * query.shape[1] / self._visible(query, key, starts)
            gated = torch.where(density > settings.dense_above, DENSE, shares)
            found.append(choose(gated, before=shares, lists=lists))
            return gated

        self._learn(coverage, gate, self._choosing(query.shape[2]) > self._blind(query, key, 0))
        return found[0]

    def _learn(self, coverage: Tensor, gate: Callable[[Tensor], Tensor], tells: bool) -> Tensor:
        """Learn from half of the audited rows [B, H, audited, shares], hold the shares that follow through the `gate`
        against the other half, and learn from that. Nothing, unless some block had a choice (`tells`)."""
        if not tells:
            return gate(self.control.shares())
        rows = coverage.permute(2, 0, 1, 3).flatten(0, 1)
        half = rows.shape[0] // 2 or int(not self.calls)  # the very first teaches, so that something is known
        self.control.forget()
        self.control.learn(rows[:half, :, :-1])
        shares = gate(self.control.shares())
        place = torch.searchsorted(self._grid, shares)
        self.log.add(rows[half:].gather(2, place.expand(rows.shape[0] - half, -1)[..., None])[..., 0])
        self.control.learn(rows[half:, :, :-1])
        self.calls += 1
        return shares

    def _gated(self, ranked: Ranked, shares: Tensor) -> Tensor:
        """Each head's share; DENSE where that share would keep more than `dense_above` of the blocks."""
        counts = ranked.count(shares[None, :, None, None].expand(*ranked.before.shape[:-1], 1))
        visible = ranked.visible.expand_as(ranked.before).sum((0, 2, 3))
        density = counts.sum((0, 2, 3)) / visible.clamp(min=1)
        return torch.where(density > self.settings.dense_above, DENSE, shares)

    def _choosing(self, queries: int) -> int:
        """How many blocks of queries, from the first on, do not keep all because they are the last."""
        return max(1, max(0, queries - self.settings.ending) // self.settings.query_block)

    def _sample(self, queries: int, blind: int) -> Tensor:
        """Blocks of queries to audit, by chance: none of the first `blind` ones and of the last, which keep all."""
        until = self._choosing(queries)
        choosing = max(1, until - blind)
        wanted = max(FEWEST if self.calls else FIRST, round(self.settings.audit_rate * choosing))
        return until - 1 - torch.randperm(choosing, generator=self._chance)[:wanted]

    def _sample_on_device(self, query: Tensor, key: Tensor, starts: Tensor | None) -> Tensor:
        """The same where `starts` must not be waited for: drawn among all, and moved behind the padding there."""
        until, blind = self._choosing(query.shape[2]), self._blind(query, key, 0)
        drawn = self._sample(query.shape[2], blind).to(query.device, non_blocking=True)
        if starts is None:
            return drawn
        padded = ((starts.max() + self._free_from(query, key)) // self.settings.query_block).clamp(0, until - 1)
        return until - 1 - (until - 1 - drawn) % (until - padded)

    def _free_from(self, query: Tensor, key: Tensor) -> int:
        """The first query that sees more keys than those of blocks that are always kept; below zero where all do."""
        settings = self.settings
        always = (settings.sinks + settings.local - 1) * settings.key_block + settings.query_block
        return always - (key.shape[2] - query.shape[2])

    def _blind(self, query: Tensor, key: Tensor, padding: int) -> int:
        """Blocks of queries, from the first on, that are padding or keep all that they see: what an audit of them finds
        says nothing of the estimate."""
        return max(0, padding + self._free_from(query, key)) // self.settings.query_block

    def _audited_rows(self, query: Tensor, key: Tensor, audited: Tensor) -> tuple[Tensor, Tensor]:
        """Some queries of each audited block [B, H, rows, D], and where they stand among the keys."""
        step = self.settings.query_block // ROWS_PER_BLOCK
        within = torch.arange(step - 1, self.settings.query_block, step, device=query.device)
        rows = (audited[:, None] * self.settings.query_block + within).flatten().clamp(max=query.shape[2] - 1)
        return query.index_select(2, rows), rows + key.shape[2] - query.shape[2]

    def _visible(self, query: Tensor, key: Tensor, starts: Tensor | None) -> Tensor:
        """How many blocks of keys hold one that a block of queries sees, on the device; its sum is over all heads."""
        settings, sizes = self.settings, (*query.shape[:3], key.shape[2])
        if starts is None and self._seen is not None and self._seen[0] == sizes:
            return self._seen[1]
        last = last_positions(query.shape[2], key.shape[2], settings.query_block, query.device) // settings.key_block
        first = last.new_zeros(query.shape[0]) if starts is None else starts // settings.key_block
        visible: Tensor = (last + 1 - first[:, None]).clamp(min=0).sum() * query.shape[1]
        if starts is None:
            self._seen = sizes, visible
        return visible


def _by_block(mass: Tensor) -> Tensor:
    """The mean over the rows of each audited block: [B, H, audited, key blocks]."""
    summed = mass.view(*mass.shape[:2], -1, ROWS_PER_BLOCK, mass.shape[-1]).sum(3)
    return summed / summed.sum(-1, keepdim=True).clamp(min=1e-30)


@dataclass(frozen=True)
class Choice:
    """The blocks of keys that each block of queries keeps: boolean [B, H, query blocks, key blocks]."""

    kept: Tensor
    visible: Tensor
    query_block: int
    key_block: int

    def sizes(self) -> tuple[int, int]:
        """How many blocks are kept, and how many are visible, over all heads."""
        return int(self.kept.sum()), int(self.visible.expand_as(self.kept).sum())

    def lists(self) -> BlockList:
        return BlockList.from_kept(self.kept, self.query_block, self.key_block)
