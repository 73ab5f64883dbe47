"""Prefill over chosen blocks: estimate, audit a few rows of blocks exactly, choose so that they keep enough, attend."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inference_pio.kernels.block_choice import DENSE, Ranked, fixed_blocks, seen_blocks
from inference_pio.kernels.block_estimate import ESTIMATES
from inference_pio.kernels.block_sparse import BlockList
from inference_pio.kernels.row_mass import row_mass
from inference_pio.sparsity.audit_log import AuditLog
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
        audited = self._sample(query.shape[2], _blind_blocks(query, key, starts, settings)).to(device)
        grid = torch.cat((self.control.grid, self.control.grid.new_tensor([DENSE])))
        mass = self._mass(query, key, audited, scale, starts)
        coverage = ranked.rows(audited).coverage(mass, grid).permute(2, 0, 1, 3).flatten(0, 1)
        half = coverage.shape[0] // 2
        self.control.forget()
        self.control.learn(coverage[:half, :, :-1])
        shares = self._gated(ranked)
        place = torch.searchsorted(grid, shares)
        self.log.add(coverage[half:].gather(2, place.expand(coverage.shape[0] - half, -1)[..., None])[..., 0])
        self.control.learn(coverage[half:, :, :-1])
        self.calls += 1
        kept = ranked.kept(shares[None, :, None].expand(ranked.before.shape[:-1]))
        return Choice(kept, ranked.visible, settings.query_block, settings.key_block)

    def _gated(self, ranked: Ranked) -> Tensor:
        """Each head's share; DENSE where that share would keep more than `dense_above` of the blocks."""
        shares = self.control.shares()
        counts = ranked.count(shares[None, :, None, None].expand(*ranked.before.shape[:-1], 1))
        visible = ranked.visible.expand_as(ranked.before).sum((0, 2, 3))
        density = counts.sum((0, 2, 3)) / visible.clamp(min=1)
        return torch.where(density > self.settings.dense_above, DENSE, shares)

    def _sample(self, queries: int, blind: int) -> Tensor:
        """Blocks of queries to audit, by chance: none of the first `blind` ones and of the last, which see all."""
        until = max(1, max(0, queries - self.settings.ending) // self.settings.query_block)
        choosing = max(1, until - blind)
        wanted = max(FEWEST if self.calls else FIRST, round(self.settings.audit_rate * choosing))
        return until - 1 - torch.randperm(choosing, generator=self._chance)[:wanted]

    def _mass(self, query: Tensor, key: Tensor, audited: Tensor, scale: float | None, starts: Tensor | None) -> Tensor:
        """The true attention of the audited rows of blocks: [B, H, audited, key blocks]."""
        step = self.settings.query_block // ROWS_PER_BLOCK
        within = torch.arange(step - 1, self.settings.query_block, step, device=query.device)
        rows = (audited[:, None] * self.settings.query_block + within).clamp(max=query.shape[2] - 1)
        offset = key.shape[2] - query.shape[2]
        picked = query.index_select(2, rows.flatten())
        mass = row_mass(picked, rows.flatten() + offset, key, block=self.settings.key_block, scale=scale, starts=starts)
        summed: Tensor = mass.view(*mass.shape[:2], -1, ROWS_PER_BLOCK, mass.shape[-1]).sum(3)
        return summed / summed.sum(-1, keepdim=True).clamp(min=1e-30)


def _blind_blocks(query: Tensor, key: Tensor, starts: Tensor | None, settings: PrefillSettings) -> int:
    """Blocks of queries that are padding in some row of the batch, and may see nothing there."""
    if starts is None:
        return 0
    padding = int(starts.max()) - (key.shape[2] - query.shape[2])
    return max(0, -(-padding // settings.query_block))


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
