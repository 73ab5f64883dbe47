"""What steps read and write beside the cache: a few small tensors on the device whose addresses stay."""

from __future__ import annotations

import torch
from torch import Tensor


class Slots:
    """For `batch` rows and up to `ahead` steps in one go.

    `tokens` int64 [B] go in next, at `positions` int32 [B]; `lengths` int32 [1] tokens are held, from `starts`
    int32 [B] on, and `recent` int32 [1] of them are not kept as codes; `made` int32 [1] counts new tokens; `given`
    int64 [B, ahead] are those that the steps of one go gave. `seen` bool [B, vocabulary] marks the tokens that a row
    holds, where a penalty asks for it.

    >>> slots = Slots(2, 4, torch.device("cpu"))
    >>> slots.begin(torch.tensor([5, 6]), torch.tensor([9, 7]), length=9, made=1)
    >>> slots.positions.tolist(), slots.lengths.tolist()
    ([9, 7], [9])
    """

    @torch.inference_mode(False)
    def __init__(self, batch: int, ahead: int, device: torch.device) -> None:
        self.tokens = torch.zeros(batch, dtype=torch.int64, device=device)
        self.given = torch.zeros(batch, ahead, dtype=torch.int64, device=device)
        self.positions = torch.zeros(batch, dtype=torch.int32, device=device)
        self.starts = torch.zeros(batch, dtype=torch.int32, device=device)
        self.counts = torch.zeros(2, dtype=torch.int32, device=device)
        self.lengths, self.recent = self.counts[:1], self.counts[1:]
        self.made = torch.zeros(1, dtype=torch.int32, device=device)
        self.seen: Tensor | None = None

    def begin(
        self, tokens: Tensor, positions: Tensor, *, length: int, made: int, starts: Tensor | None = None,
        coded: int = 0,
    ) -> None:  # fmt: skip
        """Stand before a step that takes `tokens` in, behind `length` others, of which `coded` are kept as codes."""
        self.tokens.copy_(tokens)
        self.positions.copy_(positions)
        self.lengths.fill_(length)
        self.recent.fill_(length - coded)
        self.made.fill_(made)
        self.starts.zero_() if starts is None else self.starts.copy_(starts)

    @torch.inference_mode(False)
    def mark(self, held: Tensor, vocabulary: int, unmarked: Tensor | int | None = None) -> None:
        """Mark the tokens [B, n] that rows hold, those before `unmarked` (of all rows, or [B]) left out."""
        if self.seen is None:
            self.seen = torch.zeros(len(self.tokens), vocabulary, dtype=torch.bool, device=self.tokens.device)
        held = held.to(self.seen.device)
        marked = torch.ones_like(held, dtype=torch.bool)
        if unmarked is not None:
            first = torch.as_tensor(unmarked, device=held.device).view(-1, 1)
            marked = torch.arange(held.shape[1], device=held.device) >= first
        counts = torch.zeros(self.seen.shape, device=held.device).scatter_add_(1, held, marked.expand_as(held).float())
        self.seen.copy_(counts > 0)

    def enter(self) -> None:
        """One more token is held: the one that goes in."""
        self.counts += 1

    def leave(self, chosen: Tensor, step: int) -> None:
        """A step gave these tokens, int64 [B]."""
        self.tokens.copy_(chosen)
        self.given[:, step].copy_(chosen)
        self.positions += 1
        self.made += 1
        if self.seen is not None:
            self.seen.scatter_(1, chosen[:, None], True)

    def kept(self) -> list[Tensor]:
        """Everything that steps change, to be put back after steps that were only tried."""
        return [self.tokens, self.given, self.positions, self.counts, self.made] + (
            [] if self.seen is None else [self.seen]
        )
