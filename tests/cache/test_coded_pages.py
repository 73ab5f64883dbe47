"""Pages are appended and read as they were coded, wherever their room moves."""

from __future__ import annotations

import pytest
import torch

from inference_pio.cache import coded_pages
from inference_pio.cache.coded_pages import CodedPages
from inference_pio.kernels.page_codes import PageForm, code_pages, page_values

FORMS = {"int8": PageForm(8), "int4": PageForm(4, 16), "fp8": PageForm(8, 16, floating=True), "kept": None}
EACH = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def states(pages: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, pages * 64, 32, generator=torch.Generator().manual_seed(seed))


def as_coded(given: torch.Tensor, form: PageForm | None) -> torch.Tensor:
    """Each page by itself through its codes."""
    return torch.cat(
        [
            page if form is None else page_values(code_pages(page, form), form, given.dtype)
            for page in given.split(64, 2)
        ],
        2,
    )


def read(held: CodedPages, first: int, tokens: int) -> torch.Tensor:
    out = torch.full((2, 3, tokens, 32), torch.nan)
    held.read(out, first, tokens)
    return out


@EACH
@pytest.mark.parametrize("block", [1, 2**13, 2**20])
def test_what_is_read_is_what_each_page_was_coded_as(
    form: PageForm | None, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coded_pages, "BLOCK_ELEMENTS", {"cpu": block})
    held, given = CodedPages(form), states(13)
    for begin, end in ((0, 1), (1, 2), (2, 9), (9, 13)):
        held.append(given[:, :, begin * 64 : end * 64])
    wanted = as_coded(given, form)
    assert held.count == 13
    for first, tokens in ((0, 13 * 64), (0, 64), (3, 1), (5, 65), (12, 63)):
        assert torch.equal(read(held, first, tokens), wanted[:, :, first * 64 : first * 64 + tokens])


@EACH
def test_a_page_that_was_coded_keeps_its_bits_through_growth(form: PageForm | None) -> None:
    held = CodedPages(form)
    held.append(states(2))
    before = [part[:, :, :2].clone() for part in held.parts]
    held.append(states(40, seed=1))
    assert all(torch.equal(part[:, :, :2], kept) for part, kept in zip(held.parts, before, strict=True))


def test_room_grows_by_little() -> None:
    held, room = CodedPages(PageForm(8)), []
    for _ in range(50):
        held.append(states(1))
        room.append(held.capacity)
    assert sorted(set(room)) == [4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 45, 50]
    assert held.nbytes == 50 * (2 * 3 * 64 * 32 + 2 * 3 * 32 * 4)
    whole = CodedPages(PageForm(8))
    whole.append(states(30))
    assert whole.capacity == 30


@EACH
def test_rows_are_taken_in_the_asked_order(form: PageForm | None) -> None:
    held, given = CodedPages(form), states(5)
    held.append(given)
    with torch.inference_mode():
        held.select(torch.tensor([1, 1, 0]))
    out = torch.empty(3, 3, 5 * 64, 32)
    held.read(out, 0, 5 * 64)
    assert torch.equal(out, as_coded(given, form)[[1, 1, 0]])
    held.append(given[[0, 1, 0], :, :64])  # outside of the mode that it was selected in


def test_pages_made_in_inference_mode_are_written_outside_of_it() -> None:
    held = CodedPages(PageForm(4))
    with torch.inference_mode():
        held.append(states(1))
    held.append(states(1))
    assert held.count == 2
