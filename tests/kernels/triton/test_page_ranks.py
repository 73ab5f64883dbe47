"""Ranking by many programs and searching by one choose the same pages, equal ones from the front."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.kernels.page_list import PageList
from inference_pio.kernels.page_summary import PageSummary

pytestmark = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


def both_ways(length: int, share: float, budget: int | None, ahead: int, pages: int) -> list[PageList]:
    """By summaries of which many are equal."""
    from inference_pio.kernels.triton import page_choice

    chance = torch.Generator().manual_seed(pages)
    few = torch.randn(4, 64, generator=chance)
    mean = few[torch.randint(0, 4, (2, 2, pages), generator=chance)]
    summary = PageSummary(mean.bfloat16(), mean.bfloat16(), mean.contiguous())
    query = torch.randn(2, 6, 64, generator=chance).bfloat16()
    lengths, shares = torch.tensor([length, 3], dtype=torch.int32), torch.tensor([share, 0.5])
    found, most = [], page_choice.MOST_RANKED
    try:
        for page_choice.MOST_RANKED in (most, 0):
            found.append(page_choice.choose_pages(query, summary, lengths, shares, budget=budget, ahead=ahead))
    finally:
        page_choice.MOST_RANKED = most
    return found


def check(*case: int) -> None:
    ranked, searched = both_ways(*case)  # type: ignore[arg-type]
    assert torch.equal(ranked.counts, searched.counts)
    pages = case[-1]
    assert torch.equal(ranked.kept(pages), searched.kept(pages))
    for row, head in ((0, 0), (0, 1), (1, 0), (1, 1)):
        listed = ranked.indices[row, head, : ranked.counts[row, head]].tolist()
        assert len(set(listed)) == len(listed)


@pytest.mark.parametrize(
    "case",
    [
        (3200, 0.3, None, 0, 50), (3200, 0.7, None, 0, 50), (3200, 2.0, 7, 0, 50), (3100, 0.999, None, 3, 50),
        (3136, 0.5, 9, 3, 50), (1, 0.5, None, 0, 3), (128, 0.0, None, 3, 3),
    ],
    ids=str,
)  # fmt: skip
def test_both_choose_the_same(case: tuple[int, ...], interpreted: Callable[..., None]) -> None:
    interpreted(check, *case)
