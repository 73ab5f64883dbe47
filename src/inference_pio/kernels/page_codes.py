"""Pages of a cache as codes of 8 or 4 bits or as fp8, each with a step and a middle; the plain truth first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inference_pio.kernels.fp8 import FP8, LARGEST

HALF_PRECISION_LIMIT = 65504.0
"""The largest float16: a middle beyond it is drawn back to it, and the step grows until the codes reach."""
# What a range is narrowed to before it is cut into 16 steps: the rarest numbers cost the others less than their own.
NARROWINGS = {8: (1.0,), 4: (1.0, 0.92, 0.84)}


@dataclass(frozen=True)
class PageForm:
    """How a page `[..., tokens, width]` is coded: in `bits`; what shares a step and a middle is a channel of the page
    (`group` 0), or `group` neighbouring channels of one token. `floating` codes are e4m3, with a step alone.

    >>> PageForm(8).bits_of(128), PageForm(4, 64).bits_of(128), PageForm(8, 128, floating=True).bits_of(128)
    (8.5, 4.5, 8.125)
    """

    bits: int
    group: int = 0
    floating: bool = False

    def bits_of(self, width: int, tokens: int = 64) -> float:
        """Bits that a number of a page takes, its part of steps and middles counted."""
        sharing = self.group or tokens
        return self.bits + (16 if self.floating else 32) / sharing

    @property
    def largest(self) -> int:
        """The largest code."""
        return int(2**self.bits - 1)


Parts = tuple[Tensor, ...]
"""What a page is stored as: codes in uint8 `[..., tokens, width]` (4 bits: half the width), steps in bfloat16 and,
where codes are whole numbers, middles in float16, `[..., 1, width]` or `[..., tokens, groups]`."""


def naive_page_values(parts: Parts, form: PageForm) -> Tensor:
    """The numbers of pages from the definition, in float32: (code - largest / 2) * step + middle."""
    if form.floating:
        codes, step = parts
        return codes.view(FP8).float() * step.float().repeat_interleave(form.group, -1)
    codes, step, middle = parts
    if form.bits == 4:
        codes = torch.cat([codes % 16, codes // 16], -1)
    repeats = (1, codes.shape[-2]) if not form.group else (form.group, 1)
    step, middle = (
        one.float().repeat_interleave(repeats[0], -1).repeat_interleave(repeats[1], -2) for one in (step, middle)
    )
    return (codes.float() - form.largest / 2) * step + middle


@torch.no_grad()
def code_pages(pages: Tensor, form: PageForm) -> Parts:
    """Pages `[..., tokens, width]` as their parts.

    >>> form = PageForm(8, 4)
    >>> parts = code_pages(torch.tensor([[-127.5, 0.5, 100.5, 127.5]]), form)
    >>> [part.tolist() for part in parts], page_values(parts, form, torch.float32).tolist()
    ([[[0, 128, 228, 255]], [[1.0]], [[0.0]]], [[-127.5, 0.5, 100.5, 127.5]])
    """
    numbers = pages.float()
    if form.group:
        numbers = numbers.unflatten(-1, (-1, form.group))
    shared = -1 if form.group else -2
    if form.floating:
        step = (numbers.abs().amax(shared, keepdim=True) / LARGEST).bfloat16()
        codes = (numbers / _divisor(step)).clamp_(-LARGEST, LARGEST).to(FP8).view(torch.uint8)
        return codes.flatten(-2), step.squeeze(-1)
    codes, step, middle = _best_fit(numbers, shared, form)
    if form.group:
        codes, step, middle = codes.flatten(-2), step.squeeze(-1), middle.squeeze(-1)
    if form.bits == 4:
        low, high = codes.chunk(2, -1)
        codes = low | high << 4
    return codes, step, middle


def page_values(parts: Parts, form: PageForm, dtype: torch.dtype) -> Tensor:
    """The numbers of pages, computed in float32, in a dtype."""
    codes, step = parts[0], parts[1].float()
    if form.floating:
        numbers = codes.view(FP8).float().unflatten(-1, (-1, form.group)).mul_(step[..., None])
        return numbers.flatten(-2).to(dtype)
    if form.bits == 4:
        codes = torch.cat([codes & 15, codes >> 4], -1)
    base = parts[2].float() - step * (form.largest / 2)
    if not form.group:
        return torch.addcmul(base, codes.float(), step).to(dtype)
    grouped = codes.float().unflatten(-1, (-1, form.group))
    return torch.addcmul(base[..., None], grouped, step[..., None]).flatten(-2).to(dtype)


def _best_fit(numbers: Tensor, shared: int, form: PageForm) -> Parts:
    """Codes, steps and middles: of the narrowed ranges tried, the one of the least squared error for each step."""
    low, high = numbers.amin(shared, keepdim=True), numbers.amax(shared, keepdim=True)
    middle = ((low + high) / 2).clamp(-HALF_PRECISION_LIMIT, HALF_PRECISION_LIMIT).half()
    reach = torch.maximum(high - middle.float(), middle.float() - low)
    step = (reach * (2 / form.largest)).bfloat16()
    tried = NARROWINGS[form.bits]
    if len(tried) > 1:
        steps = [(step.float() * narrowed).bfloat16() for narrowed in tried]
        errors = torch.stack([_error(numbers, one, middle, shared, form) for one in steps])
        step = torch.stack(steps).gather(0, errors.argmin(0, keepdim=True))[0]
    return _round(numbers, step, middle, form), step, middle


def _error(numbers: Tensor, step: Tensor, middle: Tensor, shared: int, form: PageForm) -> Tensor:
    codes = _round(numbers, step, middle, form).float()
    values = (codes - form.largest / 2) * step.float() + middle.float()
    return (values - numbers).square_().sum(shared, keepdim=True)


def _round(numbers: Tensor, step: Tensor, middle: Tensor, form: PageForm) -> Tensor:
    places = (numbers - middle.float()) / _divisor(step) + form.largest / 2
    return places.round_().clamp_(0, form.largest).to(torch.uint8)


def _divisor(step: Tensor) -> Tensor:
    """Steps to divide by: where all numbers are one number, nothing lies off its middle."""
    return torch.where(step > 0, step, torch.ones_like(step)).float()
