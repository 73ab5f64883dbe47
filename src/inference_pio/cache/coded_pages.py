"""Whole pages of one layer's keys or values as codes: appended, read block by block, and never coded again."""

from __future__ import annotations

import torch
from torch import Tensor

from inference_pio.kernels.page_codes import PageForm, Parts, code_pages, page_values
from inference_pio.kernels.triton.launch import PAGE

FIRST_PAGES = 4
BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**24}
"""Numbers that are made of codes at a time: what the float32 between takes stays in a CPU's cache, and is no large part
of a GPU's memory."""


class CodedPages:
    """Pages `[batch, heads, pages, 64, width]` of one kind of states, in a form, or as they are where it is None.

    Room grows by an eighth, since codes are kept to save room.
    """

    def __init__(self, form: PageForm | None) -> None:
        self.form, self.count = form, 0
        self.parts: Parts = ()

    @property
    def nbytes(self) -> int:
        """All bytes that are held, used or not."""
        return sum(part.nbytes for part in self.parts)

    @property
    def capacity(self) -> int:
        return self.parts[0].shape[2] if self.parts else 0

    def append(self, states: Tensor) -> None:
        """Code states `[batch, heads, tokens, width]` of whole pages behind the others."""
        pages = states.view(*states.shape[:2], -1, PAGE, states.shape[3])
        if self.count + pages.shape[2] > self.capacity:
            self.reserve(max(self.count + pages.shape[2], self.count + max(FIRST_PAGES, self.count // 8)), pages)
        for first, last in _blocks(pages):
            for held, made in zip(self.parts, self._code(pages[:, :, first:last]), strict=True):
                held[:, :, self.count + first : self.count + last].copy_(made)
        self.count += pages.shape[2]

    def read(self, out: Tensor, first: int, tokens: int) -> None:
        """Write `tokens` tokens, from the beginning of a page on, into `out` `[batch, heads, tokens, width]`."""
        last = first + -(-tokens // PAGE)
        like = out[:, :, :1, None].expand(-1, -1, last - first, PAGE, -1)
        for begin, end in _blocks(like):
            values = self._values(first + begin, first + end).flatten(2, 3)
            at = begin * PAGE
            out[:, :, at : at + PAGE * (end - begin)].copy_(values[:, :, : tokens - at])

    @torch.inference_mode(False)
    @torch.no_grad()
    def select(self, rows: Tensor) -> None:
        """Take these rows of the batch, in this order."""
        self.parts = tuple(part.index_select(0, rows) for part in self.parts)

    def _code(self, pages: Tensor) -> Parts:
        return (pages,) if self.form is None else code_pages(pages, self.form)

    def _values(self, first: int, last: int) -> Tensor:
        parts = tuple(part[:, :, first:last] for part in self.parts)
        return (
            parts[0] if self.form is None else page_values(parts, self.form, torch.float32)
        )  # rounded where it is put

    @torch.inference_mode(False)  # what is made in inference mode could not be written outside of it
    @torch.no_grad()
    def reserve(self, room: int, pages: Tensor) -> None:
        """Room for so many pages like `pages` `[batch, heads, any, 64, width]`; all move where there is less."""
        if room <= self.capacity:
            return
        one = torch.zeros((*pages.shape[:2], 1, *pages.shape[3:]), dtype=pages.dtype, device=pages.device)
        grown = tuple(part.expand(-1, -1, room, -1, -1).contiguous() for part in self._code(one))
        for fresh, part in zip(grown, self.parts, strict=False):
            fresh[:, :, : self.count].copy_(part[:, :, : self.count])
        self.parts = grown


def _blocks(pages: Tensor) -> list[tuple[int, int]]:
    """Runs of pages that are coded or read at one time."""
    batch, heads, count, tokens, width = pages.shape
    most = BLOCK_ELEMENTS.get(pages.device.type, 2**20)
    each = max(1, most // max(1, batch * heads * tokens * width))
    return [(first, min(first + each, count)) for first in range(0, count, each)]
