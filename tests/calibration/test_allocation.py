"""Allocation: within the budget always, as good as the best of all fillings within one step, and the same each time."""

from __future__ import annotations

import itertools
import random

import pytest

from inference_pio.calibration.allocation import KEPT, Choice, Choices, alike, allocate, bytes_of, least_bytes


def some_choices(seed: int, layers: int = 5) -> dict[str, list[Choice]]:
    """Layers of unlike size and weight; finer forms mostly lose less."""
    made, found = random.Random(seed), {}
    for number in range(layers):
        size, weight = made.randint(20, 400), made.random() ** 3
        forms = [("int4", 128, 17, 1.0), ("int4", 32, 20, made.uniform(0.3, 1.1)), ("int8", 0, 33, 0.01)]
        found[str(number)] = [
            *(Choice(name, group, size * share // 16, weight * lost) for name, group, share, lost in forms),
            Choice(KEPT, 0, size * 4, 0.0),
        ]
    return found


def loss_of(chosen: dict[str, Choice]) -> float:
    return sum(one.loss for one in chosen.values())


def best_of_all(choices: Choices, budget: int) -> float:
    every = itertools.product(*choices.values())
    return min(sum(one.loss for one in taken) for taken in every if sum(one.nbytes for one in taken) <= budget)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.9])
def test_it_keeps_to_the_budget_and_is_nearly_the_best(seed: int, share: float) -> None:
    choices = some_choices(seed)
    least, most = least_bytes(choices), sum(of[-1].nbytes for of in choices.values())
    budget = round(least + share * (most - least))
    chosen = allocate(choices, budget)
    assert bytes_of(chosen) <= budget
    worst = sum(of[0].loss for of in choices.values())
    assert loss_of(chosen) - best_of_all(choices, budget) <= 0.25 * worst
    assert chosen == allocate(choices, budget)


def test_of_all_seeds_together_little_is_lost_against_the_best() -> None:
    found = best = 0.0
    for seed in range(40):
        choices = some_choices(seed)
        budget = round(1.3 * least_bytes(choices))
        found, best = found + loss_of(allocate(choices, budget)), best + best_of_all(choices, budget)
    assert best <= found <= 1.25 * best


def test_what_is_left_after_the_best_steps_is_filled_with_smaller_ones() -> None:
    large = [Choice("int4", 128, 100, 9.0), Choice("int8", 0, 200, 0.0)]
    small = [Choice("int4", 128, 10, 0.1), Choice("int4", 32, 12, 0.09), Choice("int8", 0, 20, 0.0)]
    chosen = allocate({"large": large, "small": small}, 112)
    assert [str(one) for one in chosen.values()] == ["int4, 128", "int4, 32"]
    assert [str(one) for one in allocate({"large": large, "small": small}, 211).values()] == ["int8", "int4, 128"]


def test_nothing_is_paid_for_nothing() -> None:
    of_layer = [Choice("int4", 128, 10, 1.0), Choice("int4", 32, 12, 1.0), Choice("int8", 0, 20, 2.0)]
    assert allocate({"one": of_layer}, 1000)["one"] is of_layer[0]


def test_below_the_least_the_least_is_taken() -> None:
    choices = some_choices(0)
    assert bytes_of(allocate(choices, 1)) == least_bytes(choices)


def test_alike_takes_the_largest_group_that_is_there() -> None:
    choices = {
        "all": [Choice("int4", group, 10, 0.0) for group in (128, 64, 32)] + [Choice("int8", 0, 20, 0.0)],
        "one": [Choice("int4", 32, 10, 0.0), Choice("int8", 0, 20, 0.0)],
        "none": [Choice("int8", 0, 20, 0.0), Choice(KEPT, 0, 40, 0.0)],
        "head": [Choice("fp8", 0, 20, 0.0)],
    }
    assert [str(one) for one in alike(choices, "int4", 128).values()] == ["int4, 128", "int4, 32", "int8", "fp8"]
    assert [str(one) for one in alike(choices, "int4", 64).values()] == ["int4, 64", "int4, 32", "int8", "fp8"]
    assert [str(one) for one in alike(choices, "int8").values()][:2] == ["int8", "int8"]
