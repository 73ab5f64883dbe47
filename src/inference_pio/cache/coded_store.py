"""Where one layer's coded keys and values lie while steps are recorded: all of it at addresses that stay."""

from __future__ import annotations

import torch
from torch import Tensor

from inference_pio.cache.coded_layer import RECENT, CodedLayer
from inference_pio.cache.coded_pages import CodedPages
from inference_pio.cache.kv_format import forms_of
from inference_pio.cache.store import Kind
from inference_pio.kernels.coded_decode import CodedCacheView
from inference_pio.kernels.triton.launch import PAGE

ROOM = RECENT + 2 * PAGE
"""Last tokens that there is room for: those that stay as they are, a page that is not coded yet, and runs of steps that
pass its end."""


class CodedStore:
    """`keys` and `values` `[batch, room, heads, width]` of the last tokens, which steps write to; pages before them.

    The host knows how many pages there are: it codes them between runs of steps.
    """

    def __init__(self, kind: Kind, kv_format: str, capacity: int) -> None:
        self.kind, self.kv_format = kind, kv_format
        self.pages = tuple(CodedPages(form) for form in forms_of(kv_format, kind))
        self.recent = tuple(self._like(width) for width in (kind.key_width, kind.value_width))
        self.reserve(capacity)

    @property
    def keys(self) -> Tensor:
        return self.recent[0].transpose(1, 2)

    @property
    def values(self) -> Tensor:
        return self.recent[1].transpose(1, 2)

    @property
    def count(self) -> int:
        """Pages that are held."""
        return self.pages[0].count

    @property
    def nbytes(self) -> int:
        """All bytes that are held, used or not."""
        return sum(side.nbytes for side in self.pages) + sum(recent.nbytes for recent in self.recent)

    def reserve(self, tokens: int) -> None:
        """Pages for so many tokens; where there are too few, all of them move."""
        for side, recent in zip(self.pages, self.recent, strict=True):
            side.reserve(-(-tokens // PAGE), recent[:, :, None, :PAGE])

    def seat(self, layer: CodedLayer) -> None:
        """Take over what a layer holds, all of its pages full; the layer is empty then."""
        for side, taken in zip(self.pages, layer.pages, strict=True):
            side.count = taken.count
            for held, part in zip(side.parts, taken.parts, strict=bool(taken.count)):
                held[:, :, : taken.count].copy_(part[:, :, : taken.count])
        for recent, last in zip(self.recent, layer.recent, strict=True):
            recent[:, :, : last.shape[2]].copy_(last)
        layer.reset()

    def code_a_page(self) -> None:
        """Code the oldest of the last tokens; the others move to their place."""
        for side, recent in zip(self.pages, self.recent, strict=True):
            side.append(recent[:, :, :PAGE])
            recent[:, :, : ROOM - PAGE].copy_(recent[:, :, PAGE:].clone())

    def view(self, pages: Tensor) -> CodedCacheView:
        """What a kernel reads; `pages`, int32 [1] on the device, are how many are held."""
        (keys, values), (key_form, value_form) = self.pages, forms_of(self.kv_format, self.kind)
        assert key_form is not None
        assert value_form is not None
        return CodedCacheView(keys.parts, values.parts, key_form, value_form, self.recent[0], self.recent[1], pages)

    def views(self, length: int) -> tuple[Tensor, Tensor]:
        """The first `length` tokens as numbers, `[batch, heads, length, width]`, made of codes here."""
        coded = self.count * PAGE
        found = []
        for side, recent in zip(self.pages, self.recent, strict=True):
            out = recent.new_empty(*recent.shape[:2], length, recent.shape[3])
            if coded:
                side.read(out[:, :, :coded], 0, coded)
            out[:, :, coded:].copy_(recent[:, :, : length - coded])
            found.append(out)
        return found[0], found[1]

    def hand_over(self, layer: CodedLayer, length: int) -> None:
        """A copy of the first `length` tokens, as an empty layer holds them."""
        kept = [recent[:, :, : length - self.count * PAGE].clone() for recent in self.recent]
        layer.lazy_initialization(*kept)
        layer.recent, layer.fills = tuple(kept), [PAGE] * self.count
        for side, taken in zip(self.pages, layer.pages, strict=True):
            taken.parts = tuple(part[:, :, : self.count].clone() for part in side.parts)
            taken.count = self.count

    @torch.inference_mode(False)
    def _like(self, width: int) -> Tensor:
        """Zeros, since a masked NaN behind the length would still spoil what attends over a whole page."""
        kind = self.kind
        return torch.zeros(kind.batch, kind.key_heads, ROOM, width, dtype=kind.dtype, device=kind.device)
