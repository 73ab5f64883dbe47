"""One layer's heads: which calls are served and which are dense with what reason, beside what dense attention gives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.plain_mask import Extent
from inference_pio.sparsity.adaptive_heads import AdaptiveHeads, AdaptiveSettings, Served
from inference_pio.sparsity.audited_decode import FIRST, DecodeSettings
from inference_pio.sparsity.audited_prefill import PrefillSettings
from tests import tiny

TOKENS, WIDTH = 2048, 16


def _tensors(tokens: int = TOKENS, queries: int | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    topics = torch.randn(6, WIDTH, generator=chance)
    of_block = torch.randint(0, 6, (-(-tokens // 64),), generator=chance).repeat_interleave(64)[:tokens]
    key = topics[of_block] + 0.2 * torch.randn(tokens, WIDTH, generator=chance)
    query = 2.0 * topics[of_block] + 0.2 * torch.randn(tokens, WIDTH, generator=chance)
    value = torch.randn(1, 1, tokens, WIDTH, generator=chance)
    return query[None, None, tokens - (queries or tokens) :].expand(1, 2, -1, -1), key[None, None], value


def _heads(**how: Any) -> AdaptiveHeads:
    decode = how.pop("decode", DecodeSettings())
    return AdaptiveHeads(AdaptiveSettings(PrefillSettings(), decode, dense_below=0, **how))


def test_prefill_is_near_dense_attention_and_reads_less() -> None:
    query, key, value = _tensors()
    served = _heads().serve(query, key, value, Extent((0,), TOKENS), None)
    assert isinstance(served, Served)
    assert served.kept < 0.7 * served.visible
    expected = naive_attention(query, key, value, causal=True)
    assert float((served.out - expected).norm() / expected.norm()) < 0.15


def test_a_chunk_sees_what_came_before() -> None:
    query, key, value = _tensors(queries=700)
    served = _heads().serve(query, key, value, Extent((0,), TOKENS), None)
    assert isinstance(served, Served)
    mask = torch.ones(700, TOKENS, dtype=torch.bool).tril(TOKENS - 700)
    expected = naive_attention(query, key, value, mask)
    assert float((served.out - expected).norm() / expected.norm()) < 0.15


def test_room_in_a_static_cache_is_not_read() -> None:
    query, key, value = _tensors()
    key, value = (torch.nn.functional.pad(one, (0, 0, 0, 500), value=float("nan")) for one in (key, value))
    served = _heads().serve(query, key, value, Extent((0,), TOKENS), None)
    assert isinstance(served, Served)
    assert bool(served.out.isfinite().all())


def test_certified_mode_is_near_too_and_leaves_decode_alone() -> None:
    query, key, value = _tensors()
    heads = _heads(eps=0.02)
    served = heads.serve(query, key, value, Extent((0,), TOKENS), None)
    assert isinstance(served, Served)
    assert served.backend == "gathered"
    expected = naive_attention(query, key, value, causal=True)
    assert float((served.out - expected).abs().max()) <= 2 * 0.02 * float(value.abs().max())
    assert (
        heads.serve(query[:, :, -1:], key, value, Extent((0,), TOKENS), None) == "certified mode serves prefill alone"
    )


def test_decode_follows_a_cache() -> None:
    query, key, value = _tensors(TOKENS + 40)
    cache, heads = DynamicCache(config=tiny.build("llama").config), _heads(decode=DecodeSettings(audit_rate=0.25))
    cache.update(key[:, :, :TOKENS], value[:, :, :TOKENS], 0)
    served = []
    for place in range(TOKENS, TOKENS + 40):
        heads.given(cache, 0)
        keys, values = cache.update(key[:, :, place : place + 1], value[:, :, place : place + 1], 0)
        answer = heads.serve(query[:, :, place : place + 1], keys, values, Extent((0,), place + 1), None)
        if isinstance(answer, Served):
            expected = naive_attention(query[:, :, place : place + 1], keys, values)
            served.append(float((answer.out - expected).norm() / expected.norm()))
            assert answer.kept < answer.visible
    assert len(served) >= 40 - FIRST - 4
    assert sum(served) / len(served) < 0.1
    assert heads.report()["decode"]["audited_rows"] == FIRST - 1 + (40 - FIRST) // 4


def test_what_cannot_be_followed_is_dense_with_the_reason() -> None:
    query, key, value = _tensors()
    heads = _heads()
    heads.given(None, 0)
    told = "keys that no cache layer holds as they are"
    assert heads.serve(query[:, :, -1:], key, value, Extent((0,), TOKENS), None) == told
    cache = DynamicCache(config=tiny.build("llama").config)
    cache.update(key.clone(), value, 0)
    heads.given(cache, 0)
    assert heads.serve(query[:, :, -1:], key, value, Extent((0,), TOKENS), None) == told


def test_short_rows_compiled_code_and_gradients_are_dense() -> None:
    query, key, _ = _tensors()
    short = AdaptiveHeads(AdaptiveSettings(dense_below=TOKENS + 1))
    assert short.why_dense(query, key) == f"fewer than {TOKENS + 1} tokens"
    room = torch.nn.functional.pad(key, (0, 0, 0, 8))
    assert short.serve(query, room, room, Extent((0,), TOKENS), None) == f"fewer than {TOKENS + 1} tokens"
    with torch.enable_grad():
        assert _heads().why_dense(query.clone().requires_grad_(), key) == "gradients"
    assert _heads().why_dense(query, key) is None


def test_attention_that_spreads_wide_is_dense() -> None:
    flat = torch.zeros(1, 2, TOKENS, WIDTH)
    answer = _heads().serve(flat, flat[:, :1], flat[:, :1], Extent((0,), TOKENS), None)
    assert answer == "attention spread wide at prefill"


def test_a_copy_learns_anew_and_counts_for_itself() -> None:
    query, key, value = _tensors()
    heads = _heads()
    heads.serve(query, key, value, Extent((0,), TOKENS), None)
    twins = copy.deepcopy([heads, heads])
    assert twins[0].prefill is None
    assert twins[0].settings == heads.settings
    assert twins[0].counts is not heads.counts
    others = copy.deepcopy([heads, AdaptiveHeads(heads.settings, 1, heads.counts, heads.reader)])
    assert others[0].counts is others[1].counts


@pytest.mark.parametrize("start", [0, 200])
def test_padding_is_not_seen(start: int) -> None:
    query, key, value = _tensors()
    key, value = key.clone(), value.clone()
    key[:, :, :start], value[:, :, :start] = 1e4, 1e4
    served = _heads().serve(query, key, value, Extent((start,), TOKENS), None)
    assert isinstance(served, Served)
    expected = naive_attention(query[:, :, start:], key[:, :, start:], value[:, :, start:], causal=True)
    assert float((served.out[:, :, start:] - expected).norm() / expected.norm()) < 0.15
