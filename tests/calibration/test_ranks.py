"""Ranks keep to their budget at the least loss, and to what makes a matrix faster."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from inference_pio.calibration.ranks import (
    MOST_SHARE,
    WHOLE,
    Rank,
    align_of,
    allocate_ranks,
    factor_numbers,
    rank_at,
    ranks_of,
    why_no_faster,
)


@pytest.mark.parametrize("pivoted", [True, False])
@pytest.mark.parametrize("shape", [(1024, 256), (256, 1024), (384, 384), (100, 64)])
@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.5, 0.9])
def test_a_rank_leaves_the_share_that_was_asked_for_and_is_the_largest_that_does(
    pivoted: bool, shape: tuple[int, int], ratio: float
) -> None:
    rank, matrix = rank_at(*shape, ratio, 8, pivoted), shape[0] * shape[1]
    larger = 8 if rank is None else rank + 8
    if rank is not None:
        assert rank % 8 == 0
        assert factor_numbers(*shape, rank, pivoted) <= (1 - ratio) * matrix
    assert larger > min(shape) or factor_numbers(*shape, larger, pivoted) > min(1 - ratio, MOST_SHARE) * matrix


def test_no_rank_is_offered_that_would_be_no_faster() -> None:
    for pivoted in (True, False):
        assert ranks_of(512, 512, 64, pivoted)
        assert all(factor_numbers(512, 512, rank, pivoted) <= 0.9 * 512**2 for rank in ranks_of(512, 512, 64, pivoted))
    assert ranks_of(8, 8, 64, True) == []


def problem(seed: int) -> dict[str, list[Rank]]:
    chance = random.Random(seed)
    found = {}
    for name in "abcd":
        losses = sorted((chance.random() for _ in range(4)), reverse=True)
        found[name] = [Rank(rank, 10 * rank, loss) for rank, loss in enumerate(losses, 1)] + [Rank(WHOLE, 60)]
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("numbers", [40, 90, 150, 240])
def test_the_budget_is_kept_and_nothing_of_as_few_numbers_loses_less(seed: int, numbers: int) -> None:
    choices = problem(seed)
    ranks = allocate_ranks(choices, numbers)
    ways = {(name, way.rank): way for name, of_one in choices.items() for way in of_one}
    taken = [ways[item] for item in ranks.items()]
    used, lost = sum(way.numbers for way in taken), sum(way.loss for way in taken)
    assert used <= numbers
    for others in itertools.product(*choices.values()):
        if sum(way.numbers for way in others) <= used:
            assert sum(way.loss for way in others) >= lost - 1e-9


def test_what_loses_nothing_goes_and_what_there_is_room_for_stays() -> None:
    choices = {"a": [Rank(1, 10, 0.0), Rank(WHOLE, 60)], "b": [Rank(1, 10, 1.0), Rank(WHOLE, 60)]}
    assert allocate_ranks(choices, 70) == {"a": 1, "b": WHOLE}
    assert allocate_ranks(choices, 5) == {"a": 1, "b": 1}


def test_small_matrices_have_small_steps() -> None:
    assert [align_of(side, side) for side in (16, 128, 256, 512, 1024, 2048)] == [8, 8, 16, 32, 64, 128]


def test_savings_that_a_second_product_eats_are_told() -> None:
    assert why_no_faster(2**22, torch.device("cpu")) is None
    assert "6.3 MB at least" in (why_no_faster(2**22, torch.device("cuda")) or "")
    assert "1.0 MB at least" in (why_no_faster(100, torch.device("cpu")) or "")


def test_codes_beside_the_factors_take_their_share_of_the_numbers() -> None:
    alone, beside = rank_at(1024, 256, 0.5, 8, False), rank_at(1024, 256, 0.5, 8, False, beside=0.25 * 1024 * 256)
    assert (alone, beside) == (96, 48)
    assert rank_at(1024, 256, 0.5, 8, False, beside=0.5 * 1024 * 256) is None
    assert ranks_of(1024, 256, 8, False, beside=MOST_SHARE * 1024 * 256) == []


def test_matrices_that_a_second_product_saves_little_of_stay_whole() -> None:
    def ways(numbers: float, loss: float, second: float) -> list[Rank]:
        return [Rank(WHOLE, numbers), Rank(1, numbers / 4, 3 * loss, second), Rank(2, numbers / 2, loss, second)]

    small, large = (100, 0.9), (1000, 10.0)  # at the price of a number alone the small one goes first
    assert allocate_ranks({"small": ways(*small, 0), "large": ways(*large, 0)}, 850) == {"small": 2, "large": 2}
    assert allocate_ranks({"small": ways(*small, 40), "large": ways(*large, 40)}, 850) == {"small": WHOLE, "large": 2}
