"""Trains tell the rounded number, whatever is given: held against one neuron, step by step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from inference_pio.kernels.spikes import GRID, Code, counts, naive_split, naive_train, potentials, spikes_in, trains

CODES = [
    Code(coding, levels, steps, second)
    for coding, levels, steps in (
        ("rate", 1, None), ("rate", 15, None), ("rate", 3, 7), ("radix", 1, None), ("radix", 15, None),
        ("radix", 100, None), ("radix", 255, None), ("radix", 3, 6),
    )
    for second in (False, True)
]  # fmt: skip
EACH = pytest.mark.parametrize("code", CODES, ids=str)
EDGES = [0.0, 0.49, 0.5, -0.5, -0.51, 1e-20, -1e-20, 1.5, -1.5, 1e30, -1e30, math.inf, -math.inf]


def given(code: Code) -> torch.Tensor:
    spread = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * code.reach / 2
    halves = torch.arange(-2 * code.reach - 3, 2 * code.reach + 4)[:2000] / 2
    return torch.cat([spread, halves, halves - 1 / GRID, torch.tensor(EDGES, dtype=torch.float64)])


@EACH
def test_the_sum_of_a_train_is_the_rounded_number(code: Code) -> None:
    held = potentials(given(code), torch.ones(()), code)
    told = sum(spikes * weight for spikes, weight in trains(held, code))
    assert torch.equal(told, counts(held))
    rounded = ((given(code) + 0.5) * GRID).floor().div(GRID).floor().clamp(-code.reach, code.reach)
    assert torch.equal(told, rounded)


@EACH
def test_every_neuron_does_what_a_single_one_does(code: Code) -> None:
    x = given(code)[::7]
    held = potentials(x, torch.ones(()), code)
    ours = torch.stack([spikes * weight for spikes, weight in trains(held, code)], -1)
    for potential, row in zip(held.tolist(), ours.tolist(), strict=True):
        first, second = naive_split(potential, code)
        wanted = [spike * weight for spike, weight in zip(naive_train(first, code), code.weights, strict=True)]
        if code.second:
            beside = zip(naive_train(second, code), code.weights, strict=True)
            wanted += [spike * weight * code.base for spike, weight in beside]
        assert row == wanted


@EACH
def test_spikes_are_counted_as_they_fire(code: Code) -> None:
    held = potentials(given(code), torch.ones(()), code)
    fired = sum(spikes.abs() for spikes, _ in trains(held, code))
    assert torch.equal(fired, spikes_in(counts(held), code))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_dtype_is_told_by_thresholds_of_its_own(dtype: Any) -> None:
    code, x = Code("radix", 15), torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    threshold = torch.tensor([0.1, 0.2, 1e-3, 3.0, 0.5], dtype=torch.float64)
    wanted = (x.double() / threshold + 0.5).floor().clamp(-15, 15)
    assert torch.equal(counts(potentials(x, threshold, code)), wanted)


def test_what_is_no_number_is_not_hidden() -> None:
    for code in CODES:
        held = potentials(torch.tensor([math.nan, 1.0]), torch.ones(()), code)
        told = sum(spikes * weight for spikes, weight in trains(held, code))
        assert told.isnan().tolist() == [True, False]
