"""Spiking attention: spikes and counts equal to the bit, and what rounded numbers come to, on awkward shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_pio.kernels import spiking_attention as kernel
from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.spikes import Code
from inference_pio.kernels.spiking_attention import (
    Thresholds,
    naive_spiking_attention,
    spiking_attention,
    unit_bits,
    visible_keys,
)

CODE = Code("radix", 15, second=True)
SHAPES = [(1, 1, 1, 1, 1, 4, 4), (2, 4, 2, 7, 7, 12, 5), (1, 6, 2, 1, 9, 8, 8), (2, 2, 2, 3, 11, 16, 16)]


def inputs(shape: tuple[int, ...], code: Code) -> tuple[Any, ...]:
    batch, heads, key_heads, queries, keys, width, value_dim = shape
    made = torch.Generator().manual_seed(0)
    query = torch.randn(batch, heads, queries, width, generator=made)
    key = torch.randn(batch, key_heads, keys, width, generator=made)
    value = torch.randn(batch, key_heads, keys, value_dim, generator=made)
    sides = [3 * (0.5 + torch.rand(key_heads, size, generator=made)).double() for size in (width, width, value_dim)]
    return query, key, value, Thresholds(*(side / code.levels for side in sides))


@pytest.mark.parametrize("code", [CODE, Code("radix", 63), Code("rate", 15), Code("radix", 127, second=True)], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_spikes_equal_counts_and_both_the_rounded_numbers(shape: tuple[int, ...], code: Code) -> None:
    query, key, value, thresholds = inputs(shape, code)
    seen = visible_keys(None, shape[3], shape[4], True, query.device)
    scale = shape[5] ** -0.5
    spiking = spiking_attention(query.double(), key, value, thresholds, code, seen, scale)
    at_once = spiking_attention(query.double(), key, value, thresholds, code, seen, scale, at_once=True)
    assert torch.equal(spiking, at_once)
    naive = naive_spiking_attention(query, key, value, thresholds, code, seen, scale)
    assert (spiking - naive).abs().max() < 1e-2  # a share on the edge between two counts may fall to the other side
    assert (spiking - naive).abs().median() < 1e-6


def test_many_levels_come_close_to_attention() -> None:
    code = Code("radix", 127, second=True)
    query, key, value, thresholds = inputs((2, 4, 2, 9, 9, 16, 16), code)
    seen = visible_keys(None, 9, 9, True, query.device)
    gap = spiking_attention(query, key, value, thresholds, code, seen, 0.25) - naive_attention(
        query, key, value, causal=True, scale=0.25
    )
    assert gap.abs().max() < 0.03


def test_long_prompts_are_computed_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value, thresholds = inputs((2, 4, 2, 7, 7, 12, 5), CODE)
    seen = visible_keys(None, 7, 7, True, query.device)
    whole = spiking_attention(query, key, value, thresholds, CODE, seen, 0.3)
    monkeypatch.setattr(kernel, "ROWS", 3)
    assert torch.equal(whole, spiking_attention(query, key, value, thresholds, CODE, seen, 0.3))


def test_padding_is_not_seen_and_rows_that_see_nothing_are_zero() -> None:
    query, key, value, thresholds = inputs((2, 4, 2, 7, 7, 12, 5), CODE)
    mask = torch.ones(7, 7, dtype=torch.bool).tril().expand(2, 1, 7, 7).clone()
    mask[0, :, :, :2] = False
    out = spiking_attention(query, key, value, thresholds, CODE, mask, 0.3)
    alone = spiking_attention(
        query[:1, :, 2:], key[:1, :, 2:], value[:1, :, 2:], thresholds, CODE, mask[:1, :, 2:, 2:], 0.3
    )
    assert torch.equal(out[:1, :, 2:], alone)
    assert not out[0, :, :2].any()
    additive = torch.zeros(2, 1, 7, 7).masked_fill(~mask, torch.finfo(torch.float32).min)
    assert torch.equal(visible_keys(additive, 7, 7, True, query.device), mask)
    assert visible_keys(additive + 0.5, 7, 7, True, query.device) is None


def test_what_fires_is_told_with_the_additions_that_it_leads_to() -> None:
    code = Code("rate", 15)
    query, key, value, thresholds = inputs((1, 2, 1, 3, 5, 4, 6), code)
    seen = visible_keys(None, 3, 5, True, query.device)
    told: list[Any] = []
    spiking_attention(query, key, value, thresholds, code, seen, 0.5, note=told.append)
    by_name = {one.name: one for one in told}
    counts = ((query.double() / thresholds.query[:, None] + 0.5).floor().clamp(-15, 15)).abs()
    visible = torch.tensor([3.0, 4.0, 5.0]).double()
    assert float(by_name["query"].spikes) == float(counts.sum())
    assert float(by_name["query"].accumulates) == float((counts.sum(-1) * visible).sum())
    assert int(by_name["query"].multiplies) == 2 * 12 * 4
    assert (int(by_name["share"].activations), int(by_name["share"].multiplies)) == (24, 24 * 6)
    assert int(by_name["key"].activations) == 3 * 4  # of the keys in a cache was told when they came


def test_sums_stay_exact_with_many_levels() -> None:
    for width, levels in ((64, 15), (128, 255), (256, 127)):
        code = Code("radix", levels, second=True)
        assert 2 ** unit_bits(width, code) * width * code.reach**2 < 2**53
