from __future__ import annotations

import math

import pytest
import torch

from inference_pio.measure import interval
from inference_pio.measure.interval import mean_interval


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 127), (17, 511), (40, 33)])
def test_the_interval_contains_the_point(shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 4
    low, high = mean_interval(values)
    assert low <= float(values.mean()) <= high


def test_the_same_values_always_give_the_same_interval():
    values = torch.rand(5, 300)
    state = torch.get_rng_state()
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_independent_values_give_about_the_textbook_width():
    values = torch.randn(20, 500, generator=torch.Generator().manual_seed(0))
    low, high = mean_interval(values)
    textbook = 2 * 1.96 * float(values.std()) / math.sqrt(values.numel())
    assert 0.75 * textbook < high - low < 1.25 * textbook


def test_neighbours_that_agree_make_the_interval_wider():
    """Blocks, not tokens, are drawn: 128 tokens that say the same are one witness."""
    generator = torch.Generator().manual_seed(0)
    alone = torch.randn(20, 512, generator=generator)
    together = torch.randn(20, 4, 1, generator=generator).expand(20, 4, 128).reshape(20, 512)
    widths = [high - low for low, high in (mean_interval(alone), mean_interval(together))]
    assert widths[1] > 6 * widths[0]


def test_an_interval_holds_the_true_mean_about_19_times_in_20():
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(200):
        low, high = mean_interval(torch.randn(8, 512, generator=generator))
        held += low <= 0.0 <= high
    assert 170 <= held <= 199


def test_blocks_never_span_two_windows():
    sums, counts = interval._block_sums(torch.arange(2 * 300.0, dtype=torch.float64).view(2, 300))
    assert counts.tolist() == [30] * 20
    assert float(sums.sum()) == sum(range(600))
    _, counts = interval._block_sums(torch.zeros(30, 300, dtype=torch.float64))
    assert counts.tolist() == [128, 128, 44] * 30


def test_an_infinite_value_makes_the_interval_infinite_not_nan():
    values = torch.ones(4, 100)
    values[0, 0] = float("inf")
    low, high = mean_interval(values)
    assert high == float("inf")
    assert not math.isnan(low)
