"""The pages that steps read where heads follow a fixed pattern: told to the device before each run."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from inference_pio.anatomy.attention_name import pattern_part
from inference_pio.anatomy.fixed_heads import FIXED_HEADS, FixedHeads
from inference_pio.compat import attention_name
from inference_pio.kernels.page_list import PageList
from inference_pio.kernels.triton.launch import PAGE

Kind = tuple[object, tuple[int, ...], int]
ENGINE = "decode engine"
"""What the status names as the backend of these steps."""


def fixed_heads_of(module: nn.Module) -> FixedHeads | None:
    """The heads of an attention that follow a fixed pattern, if that is what it runs now."""
    name = attention_name(module.config)
    found = vars(module).get(FIXED_HEADS) if name and pattern_part(name) == FIXED_HEADS else None
    return found if isinstance(found, FixedHeads) else None


class PageLists:
    """For each kind of `FixedHeads` and each step of a run, a list at an address that stays.

    `refresh` writes what the steps behind `length` tokens read; only lists that change are sent. Rows begin at the
    first token: for padded ones there are no lists.
    """

    @torch.inference_mode(False)
    def __init__(
        self, modules: Iterable[nn.Module], batch: int, key_heads: int, capacity: int, ahead: int, device: torch.device
    ) -> None:
        self.batch, self.key_heads, self.device = batch, key_heads, device
        self.layers = [heads for module in modules if (heads := fixed_heads_of(module)) is not None]
        most = -(-capacity // PAGE)
        self._lists: dict[Kind, list[PageList]] = {}
        self._said: dict[tuple[Kind, int], list[tuple[int, ...]]] = {}
        for heads in self.layers:
            self._lists.setdefault(_kind(heads), [
                PageList(
                    torch.zeros(batch, key_heads, dtype=torch.int32, device=device),
                    torch.zeros(batch, key_heads, most, dtype=torch.int32, device=device),
                )
                for _ in range(ahead)
            ])  # fmt: skip

    def of(self, module: nn.Module, step: int) -> PageList | None:
        """The list that a layer reads by in a step of a run; None where it attends to every token."""
        heads = fixed_heads_of(module)
        return None if heads is None else self._lists[_kind(heads)][step]

    def refresh(self, length: int, steps: int) -> None:
        """Tell the device what the next steps read, behind so many tokens, and count it."""
        for heads in {_kind(one): one for one in self.layers}.values():
            for step in range(steps):
                self._write(heads, length + step + 1, step)
        for heads in self.layers:
            for step in range(steps):
                self._count(heads, length + step + 1)

    def _write(self, heads: FixedHeads, length: int, step: int) -> None:
        pages = [self._pages(heads, head, length) for head in range(self.key_heads)]
        place = _kind(heads), step
        if self._said.get(place) == pages:
            return
        self._said[place] = pages
        listed, longest = self._lists[place[0]][step], max(map(len, pages))
        counts = torch.tensor([len(one) for one in pages], dtype=torch.int32)
        indices = torch.tensor([one + (0,) * (longest - len(one)) for one in pages], dtype=torch.int32)
        counts, indices = counts.expand_as(listed.counts).contiguous(), indices.repeat(self.batch, 1, 1)
        if self.device.type == "cuda":  # whole and pinned: such a copy does not wait, and runs under way read the old
            counts, indices = counts.pin_memory(), indices.pin_memory()
        listed.counts.copy_(counts, non_blocking=True)
        listed.indices[..., :longest].copy_(indices, non_blocking=True)

    def _pages(self, heads: FixedHeads, head: int, length: int) -> tuple[int, ...]:
        if head not in heads.key_heads or heads.is_dense(length):
            return tuple(range(-(-length // PAGE)))
        return heads.pattern.pages(length)

    def _count(self, heads: FixedHeads, length: int) -> None:
        if heads.is_dense(length):
            heads.counts.left("short rows")
            return
        sparse = len(heads.key_heads)
        kept = sparse * heads.pattern.seen(length - 1, length) + (self.key_heads - sparse) * length
        heads.counts.served("decode", ENGINE, kept=self.batch * kept, of=self.batch * self.key_heads * length)


def _kind(heads: FixedHeads) -> Kind:
    return heads.pattern, heads.key_heads, heads.dense_below
