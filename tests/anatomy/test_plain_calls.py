"""Calls that a pattern over positions must not serve are told apart, and a mask is read once a forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy import plain_calls
from inference_pio.anatomy.plain_calls import ExtentReader, library_flash, why_dense
from inference_pio.compat import ATTENTION_KEY
from inference_pio.errors import RefusedOnOptimized
from inference_pio.kernels.plain_mask import Extent
from tests import tiny


@pytest.mark.parametrize(
    ("rest", "told"),
    [
        ({}, None),
        ({"is_causal": True, "scaling": 0.5, "dropout": 0.0, "sliding_window": None}, None),
        ({"is_causal": False}, "not causal"),
        ({"sliding_window": 8}, "sliding window"),
        ({"dropout": 0.1}, "dropout"),
        ({"softcap": 30.0}, "softcap"),
        ({"s_aux": torch.ones(4)}, "s_aux"),
    ],
)
def test_what_a_pattern_does_not_know_is_left_with_a_reason(rest: dict[str, Any], told: str | None) -> None:
    reason = why_dense(nn.Identity(), rest)
    assert reason == told if told is None else told in (reason or "")


def test_a_module_that_is_not_causal_is_left_unless_the_call_says_otherwise() -> None:
    module = nn.Identity()
    module.is_causal = False  # type: ignore[assignment]
    assert "not causal" in (why_dense(module, {}) or "")
    assert why_dense(module, {"is_causal": True}) is None


def test_attention_weights_are_refused_with_the_way_out() -> None:
    with pytest.raises(RefusedOnOptimized, match="take the optimization back first"):
        why_dense(nn.Identity(), {"output_attentions": True})


def test_the_librarys_own_flash_kernel_is_known_by_its_name_and_ours_is_none() -> None:
    model = tiny.build("qwen3")
    attention = model.model.layers[0].self_attn
    for name, found in (
        ("flash_attention_2", "flash_attention_2"),
        ("sdpa", None),
        ("inference_pio_exact_flash", None),
    ):
        vars(attention.config)[ATTENTION_KEY] = name
        assert library_flash(attention) == found


def test_a_mask_is_read_once_until_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read = plain_calls.extent_of
    monkeypatch.setattr(plain_calls, "extent_of", lambda *given: reads.append(1) or read(*given))
    reader, query, key = ExtentReader(), torch.zeros(1, 2, 4, 8), torch.zeros(1, 1, 4, 8)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    assert [reader.read(mask, query, key) for _ in range(3)] == [Extent((0,), 4)] * 3
    assert len(reads) == 1
    mask[..., 0] = False
    assert reader.read(mask, query, key) == Extent((1,), 4)
    assert reader.read(mask.clone(), query, key) == Extent((1,), 4)
    assert len(reads) == 3
    with torch.inference_mode():
        unseen = mask.clone()
        assert reader.read(unseen, query, key) == Extent((1,), 4)
        unseen[..., 1] = False
        assert reader.read(unseen, query, key) == Extent((2,), 4)


def test_a_mask_of_another_size_is_unknown_and_none_is_the_librarys() -> None:
    reader, query, key = ExtentReader(), torch.zeros(1, 2, 4, 8), torch.zeros(1, 1, 6, 8)
    assert reader.read(torch.ones(1, 1, 4, 4, dtype=torch.bool).tril(), query, key) is None
    assert reader.read(None, query, key) == Extent((0,), 4)
