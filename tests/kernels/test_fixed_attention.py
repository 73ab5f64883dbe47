"""Attention over what a fixed pattern keeps, against its definition; `triton/test_fixed_attention.py` has Triton's."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels import fixed_attention
from inference_pio.kernels.fixed_attention import (
    GATHERED,
    fixed_pattern_attention,
    gathered_attention,
)
from inference_pio.kernels.fixed_pattern import FixedPattern, naive_fixed_pattern_attention

PATTERNS = [FixedPattern(64, 64), FixedPattern(0, 100), FixedPattern(64, 128, stride=256), FixedPattern(128, 192)]
SHAPES = [(300, 300), (1, 1), (1, 777), (37, 700), (200, 777), (130, 641), (1024, 1024)]


def tensors_of(queries: int, keys: int, batch: int = 2, widths: tuple[int, int] = (16, 16)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(queries * 1000 + keys)
    shapes = ((batch, 4, queries, widths[0]), (batch, 2, keys, widths[0]), (batch, 2, keys, widths[1]))
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_gathering_gives_the_attention_of_the_pattern(pattern: FixedPattern, queries: int, keys: int) -> None:
    tensors = tensors_of(queries, keys)
    got = gathered_attention(*tensors, pattern, scale=0.3)
    expected = naive_fixed_pattern_attention(*tensors, pattern, scale=0.3).transpose(1, 2)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert got.shape == (2, queries, 4, 16)


def test_keys_and_values_of_other_widths_are_served() -> None:
    tensors = tensors_of(300, 500, widths=(24, 20))
    got = gathered_attention(*tensors, FixedPattern(64, 64))
    expected = naive_fixed_pattern_attention(*tensors, FixedPattern(64, 64)).transpose(1, 2)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_it_is_off_by_rounding_alone() -> None:
    tensors = [tensor.bfloat16() for tensor in tensors_of(700, 700)]
    got = gathered_attention(*tensors, FixedPattern(64, 64)).float()
    expected = naive_fixed_pattern_attention(*tensors, FixedPattern(64, 64)).transpose(1, 2)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-2)


def test_what_the_pattern_leaves_out_is_not_read() -> None:
    query, key, value = tensors_of(1, 777)
    hidden = ~FixedPattern(64, 64).mask(1, 777)[0]
    key[:, :, hidden] = float("nan")
    value[:, :, hidden] = float("nan")
    assert gathered_attention(query, key, value, FixedPattern(64, 64)).isfinite().all()


def test_no_more_keys_are_gathered_than_said(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered = []
    monkeypatch.setattr(fixed_attention, "GATHERED_KEYS", 1024)
    attend = fixed_attention.fused_attention
    monkeypatch.setattr(
        fixed_attention, "fused_attention",
        lambda query, key, *rest, **how: gathered.append(key.shape[0] * key.shape[2])
        or attend(query, key, *rest, **how),
    )  # fmt: skip
    tensors = tensors_of(2048, 2048, batch=1)
    got = gathered_attention(*tensors, FixedPattern(64, 64))
    expected = naive_fixed_pattern_attention(*tensors, FixedPattern(64, 64)).transpose(1, 2)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert max(gathered) == 1024


def test_on_a_cpu_keys_are_gathered() -> None:
    assert fixed_pattern_attention(*tensors_of(5, 300), FixedPattern(64, 64))[1] == GATHERED
