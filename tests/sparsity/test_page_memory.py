"""Following caches: one token at a time without reading them again, and anew after whatever else happened to them."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from inference_pio.cache import PagedCache
from inference_pio.kernels.page_summary import PageSummary, naive_page_summary
from inference_pio.kernels.plain_mask import Extent
from inference_pio.sparsity import page_memory
from inference_pio.sparsity.page_memory import PageMemory
from tests import tiny


def _write(cache: Any, memory: PageMemory, tokens: int, starts: tuple[int, ...] = (0, 0)) -> PageSummary:
    """Write tokens as a model would, and follow."""
    layer = cache.layers[0] if cache.layers else None
    was_last, length = memory.is_last(layer, getattr(layer, "keys", None)), int(cache.get_seq_length())
    new = torch.randn(2, 2, tokens, 16)
    key, _ = cache.update(new, new.clone(), 0)
    return memory.follow(cache.layers[0], was_last, key, Extent(starts, length + tokens), tokens)


def _check(cache: Any, summary: PageSummary, starts: tuple[int, ...] = (0, 0)) -> None:
    length = int(cache.get_seq_length())
    known = naive_page_summary(cache.layers[0].keys.transpose(1, 2), length, torch.tensor(starts))
    pages = -(-length // 64)
    for got, expected in zip(
        (summary.minimum, summary.maximum, summary.mean), (known.minimum, known.maximum, known.mean), strict=True
    ):
        torch.testing.assert_close(got[:, :, :pages], expected[:, :, :pages], rtol=1e-5, atol=1e-5)


def _cache(kind: str) -> Any:
    config = tiny.build("llama").config
    if kind == "paged":
        return PagedCache(config, capacity=400)
    return DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=400)


@pytest.mark.parametrize("kind", ["dynamic", "static", "paged"])
@pytest.mark.parametrize("starts", [(0, 0), (0, 70)])
def test_prompts_tokens_and_chunks_are_followed(kind, starts, monkeypatch) -> None:
    cache, memory, read = _cache(kind), PageMemory(), []
    whole = page_memory.update_page_summary
    monkeypatch.setattr(
        page_memory, "update_page_summary", lambda *args: (read.append(args[3] - args[2]), whole(*args))
    )
    for tokens in (130, 1, 1, 61, 1, 64, 1):
        _check(cache, _write(cache, memory, tokens, starts), starts)
    assert read == [130, 1, 1, 61, 1, 64, 1]


@pytest.mark.parametrize("kind", ["dynamic", "static", "paged"])
def test_a_reordered_cropped_or_reset_cache_is_read_anew(kind) -> None:
    cache, memory = _cache(kind), PageMemory()
    _write(cache, memory, 100)
    cache.reorder_cache(torch.tensor([1, 0]))
    _check(cache, _write(cache, memory, 1))
    if kind == "static":
        cache.reset()
    else:
        cache.layers[0].crop(-51)  # the others hold nothing
    _check(cache, _write(cache, memory, 60))
    _check(cache, _write(cache, memory, 1))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("kind", ["static", "paged"])
def test_another_text_of_the_same_length_in_the_same_room_is_read_anew(kind, inference) -> None:
    with torch.inference_mode(inference):
        cache, memory = _cache(kind), PageMemory()
        for tokens in (99, 100):  # the second prompt ends where the first text did
            cache.reset()
            new = torch.randn(2, 2, tokens, 16)
            cache.update(new, new.clone(), 0)
            if inference:  # torch does not count what is written in this mode
                memory.forget(cache.layers[0])
            _check(cache, _write(cache, memory, 1))


def test_caches_are_kept_apart_and_forgotten_with_their_caches() -> None:
    memory = PageMemory()
    first, second = _cache("dynamic"), _cache("dynamic")
    for cache in (first, second, first, second):
        _check(cache, _write(cache, memory, 33))
    del first, cache
    gc.collect()
    assert len(memory._followed) == 1
