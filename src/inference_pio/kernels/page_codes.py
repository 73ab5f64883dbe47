"""Pages of a cache as codes of 8 or 4 bits or as fp8, each with a step and a middle; the plain truth first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inference_pio.kernels.fp8 import FP8, LARGEST, bare

HALF_PRECISION_LIMIT = 65504.0
"""The largest float16: a middle beyond it is drawn back to it, and the step grows until the codes reach."""
# What a range is narrowed to before it is cut into steps: the rarest numbers cost the others less than their own. In 8
# bits there is nothing to gain.
NARROWINGS = {8: (1.0,), 4: (1.0, 0.92, 0.84)}
FITTINGS = {8: 0, 4: 2}
"""Times that least squares between numbers and their codes follow."""


@dataclass(frozen=True)
class PageForm:
    """How a page `[..., tokens, width]` is coded: in `bits`; what shares a step and a middle is a channel of `tokens`
    tokens (`group` 0), or `group` neighbouring channels of one token. `floating` codes are e4m3, with a step alone.

    >>> PageForm(8).bits_of_number, PageForm(4, tokens=32).bits_of_number, PageForm(8, 64, floating=True).bits_of_number
    (8.5, 5.0, 8.25)
    """

    bits: int
    group: int = 0
    tokens: int = 64
    floating: bool = False

    @property
    def bits_of_number(self) -> float:
        """Bits that a number takes, its part of steps and middles counted."""
        return self.bits + (16 if self.floating else 32) / (self.group or self.tokens)

    @property
    def largest(self) -> int:
        """The largest code."""
        return int(2**self.bits - 1)

    @property
    def shared(self) -> int:
        """The dimension of what shares a step, where pages are split by it."""
        return -1 if self.group else -2

    def split(self, pages: Tensor) -> Tensor:
        """Pages with a dimension more, that of what shares a step."""
        sizes = (-1, self.group or self.tokens)
        split: Tensor = pages.unflatten(self.shared, sizes)  # type: ignore[no-untyped-call]
        return split

    def joined(self, split: Tensor) -> Tensor:
        """Split pages as they were."""
        return split.flatten(-2) if self.group else split.flatten(-3, -2)


Parts = tuple[Tensor, ...]
"""What a page is stored as: codes in uint8 `[..., tokens, width]` (4 bits: half the width), steps in bfloat16 and,
where codes are whole numbers, middles in float16, `[..., runs of tokens, width]` or `[..., tokens, groups]`."""


def naive_page_values(parts: Parts, form: PageForm) -> Tensor:
    """The numbers of pages from the definition, in float32: (code - largest / 2) * step + middle."""
    codes, *scales = parts
    if form.bits == 4:
        codes = torch.cat([codes % 16, codes // 16], -1)
    across, along = (form.group, 1) if form.group else (1, form.tokens)
    step, *middle = (one.float().repeat_interleave(across, -1).repeat_interleave(along, -2) for one in scales)
    if form.floating:
        return codes.view(FP8).float() * step
    return (codes.float() - form.largest / 2) * step + middle[0]


@torch.no_grad()
def code_pages(pages: Tensor, form: PageForm) -> Parts:
    """Pages `[..., tokens, width]` as their parts.

    >>> form = PageForm(8, 4)
    >>> parts = code_pages(torch.tensor([[-127.5, 0.5, 100.5, 127.5]]), form)
    >>> [part.tolist() for part in parts], page_values(parts, form, torch.float32).tolist()
    ([[[0, 128, 228, 255]], [[1.0]], [[0.0]]], [[-127.5, 0.5, 100.5, 127.5]])
    """
    numbers = form.split(pages.float())
    if form.floating:
        step = (numbers.abs().amax(form.shared, keepdim=True) / LARGEST).bfloat16()
        codes = (numbers / _divisor(step)).clamp_(-LARGEST, LARGEST).to(FP8).view(torch.uint8)
        return form.joined(codes), step.squeeze(form.shared)
    codes, step, middle = _best_fit(numbers, form)
    codes = form.joined(codes)
    if form.bits == 4:
        low, high = codes.chunk(2, -1)
        codes = low | high << 4
    return codes, step.squeeze(form.shared), middle.squeeze(form.shared)


def page_values(parts: Parts, form: PageForm, dtype: torch.dtype) -> Tensor:
    """The numbers of pages, computed in float32, in a dtype."""
    codes, step = parts[0], parts[1].float().unsqueeze(form.shared)
    if form.floating:
        return form.joined(form.split(bare(codes, torch.float32)) * step).to(dtype)
    if form.bits == 4:
        codes = torch.cat([codes & 15, codes >> 4], -1)
    lowest = parts[2].float().unsqueeze(form.shared) - step * (form.largest / 2)
    return form.joined(torch.addcmul(lowest, form.split(codes.float()), step)).to(dtype)


def _best_fit(numbers: Tensor, form: PageForm) -> Parts:
    """Codes, steps and middles: of the narrowed ranges and the fits tried, those of the least squared error."""
    low, high = numbers.amin(form.shared, keepdim=True), numbers.amax(form.shared, keepdim=True)
    middle = _held((low + high) / 2)
    reach = torch.maximum(high - middle.float(), middle.float() - low) * (2 / form.largest)
    best = (reach.bfloat16(), middle)
    tried = [((reach * narrowed).bfloat16(), middle) for narrowed in NARROWINGS[form.bits][1:]]
    if tried:
        least = _error(numbers, *best, form)
        for _ in range(1 + FITTINGS[form.bits]):
            for step, centre in tried:
                error = _error(numbers, step, centre, form)
                better = error < least
                best = torch.where(better, step, best[0]), torch.where(better, centre, best[1])
                least = torch.where(better, error, least)
            tried = [_least_squares(numbers, *best, form)]
    return _round(numbers, *best, form), *best


def _least_squares(numbers: Tensor, step: Tensor, middle: Tensor, form: PageForm) -> tuple[Tensor, Tensor]:
    """The step and the middle that lie best among numbers with the codes that they have."""
    codes = _round(numbers, step, middle, form).float() - form.largest / 2
    code, number = codes.mean(form.shared, keepdim=True), numbers.mean(form.shared, keepdim=True)
    spread = (codes - code).square().sum(form.shared, keepdim=True)
    together = ((codes - code) * (numbers - number)).sum(form.shared, keepdim=True)
    fitted = torch.where(spread > 0, together / spread, step.float()).bfloat16()
    return fitted, _held(number - fitted.float() * code)


def _error(numbers: Tensor, step: Tensor, middle: Tensor, form: PageForm) -> Tensor:
    codes = _round(numbers, step, middle, form).float()
    values = (codes - form.largest / 2) * step.float() + middle.float()
    return (values - numbers).square_().sum(form.shared, keepdim=True)


def _held(middle: Tensor) -> Tensor:
    return middle.clamp(-HALF_PRECISION_LIMIT, HALF_PRECISION_LIMIT).half()


def _round(numbers: Tensor, step: Tensor, middle: Tensor, form: PageForm) -> Tensor:
    places = (numbers - middle.float()) / _divisor(step) + form.largest / 2
    return places.round_().clamp_(0, form.largest).to(torch.uint8)


def _divisor(step: Tensor) -> Tensor:
    """Steps to divide by: where all numbers are one number, nothing lies off its middle."""
    return torch.where(step > 0, step, torch.ones_like(step)).float()
