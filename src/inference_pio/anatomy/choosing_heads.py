"""Heads that choose by their input which pages of a cache a token reads: what steps of our own ask of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from inference_pio.anatomy.attention_name import pattern_part
from inference_pio.anatomy.pattern_counts import PatternCounts
from inference_pio.compat import attention_name
from inference_pio.kernels.page_list import PageList
from inference_pio.kernels.page_summary import PageSummary


class PageRoom(Protocol):
    """Lists of pages at an address that stays, and what those who make them need beside."""

    @property
    def lists(self) -> PageList: ...

    @property
    def nbytes(self) -> int: ...


class PageChooser(Protocol):
    """The choice of one layer, or of several that are `joined`: audits tell it what its heads must read."""

    steps: int

    @property
    def dense_above(self) -> float:
        """The share of pages above which steps had better attend to all tokens."""

    def joined(self, others: Sequence[Any]) -> PageChooser:
        """One for these layers and those of other choosers."""

    @property
    def is_learning(self) -> bool:
        """Whether steps of this sequence attend to all tokens yet."""

    def is_due(self, steps: int = 1) -> bool:
        """Whether one of the next steps is to be audited."""

    def begin(self) -> None:
        """Another sequence begins."""

    def audit_layers(
        self, queries: Tensor, keys: Sequence[Tensor], summary: PageSummary, *, scale: float | None = None,
        starts: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Learn from what a step's `queries` [layers, B, H, D] keep of each layer's `keys` [B, key heads, L, D]."""

    def room(self, query: Tensor, summary: PageSummary) -> PageRoom:
        """Where `list_pages` leaves what such queries [B, H, D] read by such a summary."""

    def list_pages(
        self, query: Tensor, summary: PageSummary, lengths: Tensor, *, scale: float | None = None,
        starts: Tensor | None = None, written: Tensor | None = None, ahead: int = 0, room: PageRoom | None = None,
    ) -> PageList:  # fmt: skip
        """The pages that `query` [B, H, D] and the tokens `ahead` read, in its room if one is given."""


@runtime_checkable
class ChoosingHeads(Protocol):
    """The heads of one layer: below `dense_below` tokens they attend to all."""

    counts: PatternCounts

    @property
    def dense_below(self) -> int: ...

    def page_chooser(self, heads: int, key_heads: int, device: torch.device) -> PageChooser | None:
        """Their choice at decode; None where they attend to all tokens there."""


def choosing_heads_of(module: nn.Module) -> ChoosingHeads | None:
    """The heads of an attention that choose pages, if that is the pattern it runs now: a module holds a pattern's heads
    under its name."""
    name: Any = attention_name(module.config)
    found = vars(module).get(pattern_part(name) or "") if name else None
    return found if isinstance(found, ChoosingHeads) else None
