"""What follows a cache's writes and crops is what its keys give from the definition."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.page_summary import PageSummary, naive_page_summary, update_page_summary

PAGE = 4
WALKS = {
    "tokens": [1] * 9,
    "whole pages": [8, 4],
    "odd chunks": [3, 6, 2, 5],
    "prefill and tokens": [6, 1, 1, 1, 1, 1],
    "nothing": [0, 3, 0],
    "crops": [14, -3, 1, -8, 2, 1, 1, -7, 5],
    "crop to a page": [11, -3, 1, 1],
}


def walk(steps: list[int], starts: torch.Tensor | None, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.full((2, 22, 3, 5), float("nan"), dtype=dtype)  # what was never written must not be read
    summary, length = PageSummary.zeros(keys, PAGE), 0
    for step in steps:
        before, length = length, length + step
        if step > 0:
            keys[:, before:length] = torch.randn(2, step, 3, 5, generator=generator).to(dtype)
        update_page_summary(summary, keys, before, length, starts, page_size=PAGE)
        wanted = naive_page_summary(keys, length, starts, page_size=PAGE)
        assert torch.equal(summary.minimum.float(), wanted.minimum)
        assert torch.equal(summary.maximum.float(), wanted.maximum)
        torch.testing.assert_close(summary.mean, wanted.mean, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("starts", [None, (0, 0), (2, 0), (4, 3), (9, 5)], ids=str)
@pytest.mark.parametrize("steps", WALKS.values(), ids=WALKS)
def test_it_follows_every_walk(steps: list[int], starts: tuple[int, ...] | None, dtype: torch.dtype) -> None:
    walk(steps, None if starts is None else torch.tensor(starts, dtype=torch.int32), dtype)


def test_the_plain_truth_is_what_a_page_holds() -> None:
    keys = torch.arange(10.0).view(1, 10, 1, 1)
    found = naive_page_summary(keys, 9, torch.tensor([2]), page_size=4)
    assert found.minimum.flatten().tolist() == [2, 4, 8]
    assert found.maximum.flatten().tolist() == [3, 7, 8]
    assert found.mean.flatten().tolist() == [2.5, 5.5, 8]


def test_only_touched_pages_are_written() -> None:
    keys = torch.randn(1, 16, 1, 2)
    summary = PageSummary.zeros(keys, PAGE)
    for kept in (summary.minimum, summary.maximum, summary.mean):
        kept.fill_(7.0)
    update_page_summary(summary, keys, 5, 11, page_size=PAGE)
    for kept in (summary.minimum, summary.maximum, summary.mean):
        assert kept[0, 0, [0, 3]].eq(7.0).all()
        assert kept[0, 0, [1, 2]].ne(7.0).all()
