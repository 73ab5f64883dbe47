"""Estimates by page: by definition from the summaries, and in the right order where the keys leave no doubt."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.page_estimate import SCORERS, estimate_pages
from inference_pio.kernels.page_summary import naive_page_summary


def _case(length: int, padded: bool):
    chance = torch.Generator().manual_seed(length)
    query = torch.randn(2, 4, 16, generator=chance)
    keys = torch.randn(2, length, 2, 16, generator=chance)
    starts = torch.tensor([0, length // 2]) if padded else None
    return query, keys, starts, naive_page_summary(keys, length, starts)


@pytest.mark.parametrize("length", [64, 65, 200])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("scorer", SCORERS)
def test_by_definition(length, padded, scorer) -> None:
    query, keys, starts, summary = _case(length, padded)
    got = estimate_pages(query, summary, length, scale=0.5, starts=starts, scorer=scorer)
    for row in range(2):
        start = int(starts[row]) if padded else 0
        for key_head in range(2):
            shares = []
            for head in (2 * key_head, 2 * key_head + 1):
                scores = []
                for first in range(0, length, 64):
                    held = keys[row, max(first, start) : min(first + 64, length), key_head]
                    if not len(held):
                        scores.append(float("-inf"))
                        continue
                    mine = query[row, head] * 0.5
                    mean = float(mine @ held.mean(0))
                    bound = float(torch.maximum(mine * held.amin(0), mine * held.amax(0)).sum())
                    scores.append({"mean": mean, "bounds": bound, "both": (mean + bound) / 2}[scorer])
                    scores[-1] += float(torch.tensor(float(len(held))).log())
                shares.append(torch.softmax(torch.tensor(scores), 0))
            torch.testing.assert_close(got[row, key_head], torch.stack(shares).mean(0), rtol=1e-4, atol=1e-6)


def test_bounds_find_a_single_key_that_the_mean_of_its_page_hides() -> None:
    keys = torch.zeros(1, 256, 1, 8)
    keys[0, 70, 0, 0], keys[0, 71, 0, 0] = 20.0, -20.0
    query = torch.zeros(1, 1, 8)
    query[..., 0] = 1.0
    summary = naive_page_summary(keys, 256)
    found = {scorer: estimate_pages(query, summary, 256, scorer=scorer)[0, 0] for scorer in SCORERS}
    assert found["bounds"].argmax() == 1
    assert found["both"].argmax() == 1
    torch.testing.assert_close(found["mean"], torch.full((4,), 0.25))
