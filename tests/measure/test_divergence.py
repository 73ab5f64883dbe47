from __future__ import annotations

import math

import pytest
import torch

from inference_pio.measure import divergence
from inference_pio.measure.divergence import token_divergences, token_losses

SHAPES = [(1, 2), (7, 131), (123, 431), (5, 70_001)]


def pair(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    original = torch.randn(shape, generator=generator) * 4
    return original.to(dtype), (original + torch.randn(shape, generator=generator) * 0.1).to(dtype)


@pytest.mark.parametrize("chunk", [1, 1000, 2**19])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_chunks_say_what_plain_sums_in_float64_say(shape, dtype, chunk, monkeypatch):
    monkeypatch.setattr(divergence, "CPU_CHUNK_ELEMENTS", chunk)
    original, optimized = pair(shape, dtype)
    p = torch.softmax(original.double(), -1)
    expected = (p * (torch.log_softmax(original.double(), -1) - torch.log_softmax(optimized.double(), -1))).sum(-1)
    torch.testing.assert_close(token_divergences(original, optimized), expected, rtol=1e-9, atol=1e-13)
    targets = torch.arange(shape[0]) % shape[1]
    losses = torch.nn.functional.cross_entropy(optimized.double(), targets, reduction="none")
    torch.testing.assert_close(token_losses(optimized, targets), losses, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_distribution_is_exactly_zero_from_itself(dtype):
    original, _ = pair((50, 1001), dtype)
    assert token_divergences(original, original.clone()).tolist() == [0.0] * 50


def test_a_divergence_known_by_hand():
    """KL((1/2, 1/2) ‖ (1/4, 3/4)) = ln 2 - (ln 3) / 2, and the other way round it is another number."""
    half, quarter = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert token_divergences(half, quarter).item() == pytest.approx(math.log(2) - math.log(3) / 2, abs=1e-7)
    backwards = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert token_divergences(quarter, half).item() == pytest.approx(backwards, abs=1e-7)


def test_differences_far_below_float32_are_seen():
    original = torch.zeros(1, 1000, dtype=torch.float64)
    optimized = original.clone()
    optimized[0, 0] += 1e-5
    assert token_divergences(original, optimized).item() == pytest.approx(0.5e-10 * 1e-3, rel=0.01)


def test_a_token_both_hold_impossible_adds_nothing():
    original, optimized = pair((3, 20))
    expected = token_divergences(original[:, 1:], optimized[:, 1:])
    original[:, 0] = optimized[:, 0] = float("-inf")
    torch.testing.assert_close(token_divergences(original, optimized), expected)


def test_a_token_only_the_original_holds_impossible_adds_nothing_and_the_other_way_everything():
    possible, impossible = torch.zeros(1, 3), torch.tensor([[float("-inf"), 0.0, 0.0]])
    assert token_divergences(impossible, possible).item() == pytest.approx(math.log(1.5))
    assert token_divergences(possible, impossible).item() == float("inf")
