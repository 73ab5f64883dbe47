"""The first tokens of a library's cache: the same bits without a copy, and no larger tensor is kept alive."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, DynamicLayer, StaticCache

from inference_pio.anatomy.first_tokens import kept
from tests import tiny


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_layer() -> DynamicCache:
    cache = DynamicCache()
    cache.layers.append(DynamicLayer())
    return cache


def test_an_empty_layer_takes_the_tensors_and_grows_as_the_librarys_does() -> None:
    ours, theirs = with_layer(), with_layer()
    key, value = some(2, 5, 3, 4).transpose(1, 2), some(2, 5, 3, 4, seed=1).transpose(1, 2)
    found, expected = kept(ours, key, value, 0), theirs.update(key, value, 0)
    assert found[0] is key
    assert found[1] is value
    for one, its in zip(found, expected, strict=True):
        assert torch.equal(one, its)
    later = some(2, 3, 1, 4, seed=2)
    for cache in (ours, theirs):
        kept(cache, later, later + 1, 0)
        cache.crop(-2)
    assert torch.equal(ours.layers[0].keys, theirs.layers[0].keys)
    assert torch.equal(ours.layers[0].values, theirs.layers[0].values)
    assert (ours.get_seq_length(), ours.layers[0].dtype) == (theirs.get_seq_length(), theirs.layers[0].dtype)


def test_a_part_of_a_larger_tensor_is_copied() -> None:
    whole = some(1, 6, 3, 12)
    key, value = whole[..., :4].transpose(1, 2), whole[..., 4:8].transpose(1, 2)
    found = kept(with_layer(), key, value, 0)
    for one, part in zip(found, (key, value), strict=True):
        assert torch.equal(one, part)
        assert one.untyped_storage().nbytes() == one.nbytes


def test_so_is_one_that_happens_to_be_contiguous() -> None:
    whole = some(1, 2, 4, 3)
    key = whole[:, :1]
    found, _ = kept(with_layer(), key, key, 0)
    assert found.untyped_storage().nbytes() == found.nbytes


def test_who_listens_to_updates_hears_of_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    key, heard = some(1, 2, 3, 4), []
    cache = with_layer()
    update = cache.layers[0].update
    monkeypatch.setattr(cache.layers[0], "update", lambda *given, **how: heard.append("layer") or update(*given, **how))
    kept(cache, key, key, 0)
    whole = DynamicLayer.update
    monkeypatch.setattr(DynamicLayer, "update", lambda *given, **how: heard.append("class") or whole(*given, **how))
    kept(with_layer(), key, key, 0)
    assert heard == ["layer", "class"]


def test_dtypes_that_differ_are_the_librarys_to_join() -> None:
    key, value = some(1, 2, 3, 4), some(1, 2, 3, 4).bfloat16()
    ours, theirs = with_layer(), with_layer()
    found, expected = kept(ours, key, value, 0), theirs.update(key, value, 0)
    assert [one.dtype for one in found] == [one.dtype for one in expected]


@pytest.mark.parametrize("kind", ["offloaded", "without layers", "static", "filled"])
def test_other_caches_are_asked_as_before(kind: str) -> None:
    key = some(1, 2, 3, 4)
    cache: Any = with_layer()
    if kind == "offloaded":
        cache.offloading = True
        cache.update = lambda *given: given[:2]
    elif kind == "without layers":
        cache = DynamicCache()
    elif kind == "static":
        cache = StaticCache(config=tiny.build("qwen3").config, max_cache_len=8)  # type: ignore[arg-type]
    else:
        cache.update(key, key, 0)
    asked: list[Any] = []
    update = cache.update
    cache.update = lambda *given: asked.append(given) or update(*given)
    if kind == "static":
        key = some(1, 2, 3, 24)
    kept(cache, key, key, 0)
    assert len(asked) == 1
