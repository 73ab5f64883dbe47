"""Pages are chosen as a reader would: those always read, then the weightiest until a share is held, and no more."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.block_choice import DENSE
from inference_pio.kernels.page_choice import naive_choose_pages
from inference_pio.kernels.page_estimate import estimate_pages
from inference_pio.kernels.page_list import PageList
from inference_pio.kernels.page_summary import PageSummary, naive_page_summary

CAPACITY, KEY_HEADS, WIDTH = 1280, 2, 16


def drawn(length: int, start: int = 0) -> tuple[torch.Tensor, torch.Tensor, PageSummary]:
    chance = torch.Generator().manual_seed(length)
    of_page = 2 * torch.randn(1, CAPACITY // 64, KEY_HEADS, WIDTH, generator=chance).repeat_interleave(64, 1)
    keys = of_page + torch.randn(1, CAPACITY, KEY_HEADS, WIDTH, generator=chance)
    return torch.randn(1, 4, WIDTH, generator=chance), keys, naive_page_summary(keys, length, torch.tensor([start]))


def by_hand(estimate: list[float], first: int, share: float, most: int) -> list[int]:
    """One sink, two local pages, then one after another."""
    pages = range(first, len(estimate))
    kept = [page for page in pages if page == first or page >= len(estimate) - 2]
    rest = sorted((page for page in pages if page not in kept), key=lambda page: -estimate[page])
    while rest and len(kept) < most and sum(estimate[page] for page in kept) < share:
        kept.append(rest.pop(0))
    return sorted(kept)


@pytest.mark.parametrize("length", [1, 64, 65, 700, 1280])
@pytest.mark.parametrize(("share", "budget", "start"), [(0.6, None, 0), (0.9, 5, 0), (DENSE, 6, 0), (0.8, None, 130)])
def test_the_weightiest_pages_are_kept(length: int, share: float, budget: int | None, start: int) -> None:
    start = min(start, length - 1)
    query, _, summary = drawn(length, start)
    starts = torch.tensor([start])
    chosen = naive_choose_pages(query, summary, length, torch.full((2,), share), starts=starts, budget=budget)
    estimate = estimate_pages(query, summary, length, starts=starts)
    for head in range(KEY_HEADS):
        found = chosen.indices[0, head, : chosen.counts[0, head]].tolist()
        assert found == by_hand(estimate[0, head].tolist(), start // 64, share, budget or 99)


@pytest.mark.parametrize(("length", "ahead"), [(700, 3), (704, 3), (702, 3), (640, 63), (1278, 60)])
def test_pages_of_tokens_to_come_are_listed_within_the_budget(length: int, ahead: int) -> None:
    query, _, summary = drawn(length)
    summary = padded_to_capacity(summary)
    chosen = naive_choose_pages(query, summary, length, torch.full((2,), DENSE), budget=6, ahead=ahead)
    kept = chosen.kept(CAPACITY // 64)
    assert chosen.counts.tolist() == [[6, 6]]
    for page in range((length - 1) // 64, min(-(-(length + ahead) // 64), CAPACITY // 64)):
        assert bool(kept[..., page].all())


def padded_to_capacity(summary: PageSummary) -> PageSummary:
    missing = CAPACITY // 64 - summary.mean.shape[2]
    wide = (
        torch.nn.functional.pad(one, (0, 0, 0, missing)) for one in (summary.minimum, summary.maximum, summary.mean)
    )
    return PageSummary(*wide)


def test_it_sums_up_what_was_written_and_fills_lists_that_are_there() -> None:
    query, keys, true = drawn(700)
    true = padded_to_capacity(true)
    stale = PageSummary(true.minimum.clone(), true.maximum.clone(), true.mean.clone())
    for one in (stale.minimum, stale.maximum, stale.mean):
        one[:, :, 10] = 9.0
    lists = PageList.empty(1, KEY_HEADS, 8, query.device)
    shares = torch.full((2,), 0.9)
    chosen = naive_choose_pages(query, stale, 700, shares, written=keys, ahead=3, budget=8, lists=lists)
    assert chosen is lists
    torch.testing.assert_close(stale.mean, true.mean)
    assert torch.equal(stale.maximum, true.maximum)
    expected = naive_choose_pages(query, true, 700, shares, ahead=3, budget=8)
    assert torch.equal(chosen.kept(20), expected.kept(20))
