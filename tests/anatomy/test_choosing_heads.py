"""Heads that choose pages are found by the pattern that a module runs now, and not by what else hangs on it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import nn

from inference_pio.anatomy.choosing_heads import choosing_heads_of
from inference_pio.anatomy.fixed_heads import FIXED_HEADS, FixedHeads
from inference_pio.compat import ATTENTION_KEY
from inference_pio.kernels.fixed_pattern import FixedPattern
from inference_pio.sparsity.adaptive_heads import AdaptiveHeads, AdaptiveSettings


def attention(runs: str | None, **held: Any) -> nn.Module:
    module = nn.Module()
    module.config = SimpleNamespace(**({} if runs is None else {ATTENTION_KEY: runs}))  # type: ignore[assignment]
    vars(module).update(held)
    return module


def test_heads_stand_under_the_name_of_their_pattern() -> None:
    heads = AdaptiveHeads(AdaptiveSettings(dense_below=7))
    found = choosing_heads_of(attention("mine_over_sdpa", mine=heads))
    assert found is heads
    assert found.dense_below == 7
    assert choosing_heads_of(attention("other_over_sdpa", mine=heads)) is None
    assert choosing_heads_of(attention("sdpa", mine=heads)) is None
    assert choosing_heads_of(attention(None, mine=heads)) is None


def test_heads_of_a_fixed_pattern_choose_nothing() -> None:
    fixed = FixedHeads(FixedPattern(sinks=64, window=64), (0,))
    assert choosing_heads_of(attention(f"{FIXED_HEADS}_over_sdpa", **{FIXED_HEADS: fixed})) is None
