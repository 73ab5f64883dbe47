"""What an attention keeps of a token is told without running it, and is what the library's cache then holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, T5Config, T5ForConditionalGeneration

from inference_pio.anatomy.cached_layers import CachedLayer, cached_layers, why_no_cache
from tests import tiny
from tests.cache.test_paged_cache import sliding_model
from tests.cache.walks import prompt


@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_heads_and_widths_are_those_that_a_cache_then_holds(name: str) -> None:
    model: Any = tiny.build(name)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(**prompt(2, 5), past_key_values=cache)
    found = [layer for _, layer in cached_layers(model)]
    for number, layer in enumerate(cache.layers):
        (_, key_heads, _, key_width), (_, value_heads, _, value_width) = layer.keys.shape, layer.values.shape
        assert found[number] == CachedLayer(number, key_heads, key_width, value_heads, value_width)
    assert len(found) == len(cache.layers)


@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_the_paths_are_those_of_the_decoders_attentions(name: str) -> None:
    model = tiny.build(name)
    for path, _ in cached_layers(model):
        assert "visual" not in path
        assert "ttention" in type(model.get_submodule(path)).__name__


def test_a_sliding_window_is_told() -> None:
    reasons = [layer for _, layer in cached_layers(sliding_model())]
    assert reasons[0] == "its cache is the library's DynamicSlidingWindowLayer, which keeps a window of 20 tokens"
    assert all(isinstance(layer, CachedLayer) for layer in reasons[1:])


def test_an_attention_without_a_place_in_the_cache_is_told() -> None:
    model: Any = tiny.build("qwen3")
    model.model.layers[1].self_attn.layer_idx = 7
    model.model.layers[2].self_attn.is_cross_attention = True
    reasons = [layer for _, layer in cached_layers(model)]
    assert isinstance(reasons[0], CachedLayer)
    assert reasons[1:] == ["it keeps nothing of its own in the cache"] * 2


def test_widths_that_cannot_be_told_are_told_so() -> None:
    model: Any = tiny.build("glm4_moe_lite")
    model.model.layers[0].self_attn.qk_nope_head_dim = 0
    reasons = [layer for _, layer in cached_layers(model)]
    assert reasons[0] == "the widths of its heads cannot be told from its attributes"
    assert isinstance(reasons[1], CachedLayer)


class Headless(nn.Module):
    """A configuration, and no generate."""

    def __init__(self) -> None:
        super().__init__()
        self.config = tiny.CONFIGS["qwen3"]()


class OtherDoor(Headless):
    """A generate that makes its caches in some other way."""

    def generate(self) -> None:
        raise NotImplementedError

    def _prepare_cache_for_generation(self, config: Any, cache_length: int) -> None:
        raise NotImplementedError


def test_models_without_such_a_cache_are_told() -> None:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
    for model, reason in (
        (tiny.build("plain"), "no transformers configuration"),
        (T5ForConditionalGeneration(T5Config(**sizes)), "an encoder-decoder"),
        (Headless(), "no generate that makes a cache"),
        (OtherDoor(), "makes caches in a way that is not known here"),
    ):
        assert reason in str(why_no_cache(model))
        assert cached_layers(model) == []
    assert why_no_cache(tiny.build("gpt2")) is None
