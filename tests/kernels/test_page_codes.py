"""Pages as codes against their definition: how far off they lie, what they cost, and what would break them."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels import page_codes
from inference_pio.kernels.page_codes import (
    HALF_PRECISION_LIMIT,
    PageForm,
    code_pages,
    naive_page_values,
    page_values,
)

FORMS = {
    "int8 by channel": PageForm(8),
    "int8 by channel of 16 tokens": PageForm(8, tokens=16),
    "int8 by token": PageForm(8, 8),
    "int4 by channel": PageForm(4, tokens=32),
    "int4 by token": PageForm(4, 8),
    "fp8": PageForm(8, 8, floating=True),
}
EACH = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
WHOLE = pytest.mark.parametrize("form", [form for form in FORMS.values() if not form.floating], ids=str)


def pages(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers with a channel that stands far out, as keys have them."""
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    numbers[..., 3] = numbers[..., 3] * 0.5 - 40
    return numbers


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 3, 5, 64, 16), (1, 1, 1, 64, 24), (3, 128, 8)], ids=str)
def test_values_are_what_the_definition_says(form: PageForm, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    parts = code_pages(pages(*shape).to(dtype), form)
    wanted = naive_page_values(parts, form)
    torch.testing.assert_close(page_values(parts, form, torch.float32), wanted, rtol=1e-5, atol=2e-5)
    for rounded in (torch.bfloat16, torch.float16):
        torch.testing.assert_close(page_values(parts, form, rounded).float(), wanted, rtol=2**-7, atol=2e-5)


@pytest.mark.parametrize("form", [form for name, form in FORMS.items() if name.startswith("int8")], ids=str)
def test_no_number_lies_further_off_than_half_a_step(form: PageForm) -> None:
    numbers = pages(4, 64, 16)
    parts = code_pages(numbers, form)
    step = form.joined(form.split(torch.ones_like(numbers)) * parts[1].float().unsqueeze(form.shared))
    error = (page_values(parts, form, torch.float32) - numbers).abs()
    assert (
        error <= 0.501 * step + 0.25 * step.max() * (error > 0.501 * step)
    ).all()  # the ends, for the step's rounding
    assert (error <= 0.501 * step).float().mean() > 0.98


def test_a_channel_that_stands_out_costs_its_own_page_nothing() -> None:
    """Why keys are counted by channel: by token, the others would share the step of the one that stands out."""
    numbers = pages(4, 64, 16)
    errors = {
        name: (page_values(code_pages(numbers, form), form, torch.float32) - numbers).square().mean()
        for name, form in FORMS.items()
    }
    assert errors["int4 by channel"] < 0.05 * errors["int4 by token"]
    assert errors["int8 by channel"] < 0.05 * errors["int8 by token"]


def test_narrowed_ranges_and_fits_lose_less_in_four_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    form, numbers = PageForm(4, tokens=32), torch.randn(8, 64, 64, generator=torch.Generator().manual_seed(1))

    def error() -> float:
        return float((page_values(code_pages(numbers, form), form, torch.float32) - numbers).square().mean())

    fitted = error()
    monkeypatch.setattr(page_codes, "FITTINGS", {4: 0})
    narrowed = error()
    monkeypatch.setattr(page_codes, "NARROWINGS", {4: (1.0,)})
    assert fitted < 0.92 * narrowed
    assert narrowed < 0.97 * error()


@EACH
def test_each_page_and_each_token_is_coded_by_itself(form: PageForm) -> None:
    numbers = pages(2, 3, 64, 16)
    whole = code_pages(numbers, form)
    alone = [code_pages(numbers[:, number], form) for number in range(3)]
    for place, part in enumerate(whole):
        assert torch.equal(part, torch.stack([each[place] for each in alone], 1))
    if form.group:
        halves = [code_pages(numbers[:, :, begin : begin + 32], form) for begin in (0, 32)]
        for place, part in enumerate(whole):
            assert torch.equal(part, torch.cat([half[place] for half in halves], 2))


@EACH
def test_bits_are_those_of_the_tensors(form: PageForm) -> None:
    numbers = pages(2, 64, 16).bfloat16()
    held = sum(part.nbytes for part in code_pages(numbers, form))
    assert 8 * held / numbers.numel() == form.bits_of_number


@WHOLE
def test_one_number_alone_comes_back_as_it_was(form: PageForm) -> None:
    for number in (0.0, -3.5, 1024.0, 1e-3):
        numbers = torch.full((2, 64, 16), number)
        found = page_values(code_pages(numbers, form), form, torch.float32)
        torch.testing.assert_close(found, numbers, rtol=1e-3, atol=0)


def test_fp8_of_nothing_is_nothing() -> None:
    form = FORMS["fp8"]
    assert not page_values(code_pages(torch.zeros(1, 64, 16), form), form, torch.float32).any()


@EACH
def test_numbers_beyond_half_precision_and_of_almost_nothing_stay_themselves(form: PageForm) -> None:
    for size in (3e5, 1e30, 1e-12):
        numbers = torch.linspace(0.5, 1.0, 64)[:, None].expand(64, 16) * size
        found = page_values(code_pages(numbers, form), form, torch.float32)
        assert found.isfinite().all()
        assert (found - numbers).abs().max() <= 0.1 * size
    assert float(torch.tensor(HALF_PRECISION_LIMIT).half()) == HALF_PRECISION_LIMIT


@EACH
def test_nan_is_never_made_a_number(form: PageForm) -> None:
    numbers = pages(1, 64, 16)
    numbers[0, 5, 2] = torch.nan
    assert page_values(code_pages(numbers, form), form, torch.float32)[0, 5, 2].isnan()
