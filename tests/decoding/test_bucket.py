"""Room for a batch keeps its addresses from call to call, and moves what it holds when it grows."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from typing import Any

import pytest
import torch

from inference_pio.anatomy.decoder import Decoder, decoder_of
from inference_pio.decoding.bucket import KEPT_RUNNERS, Bucket
from inference_pio.decoding.runner import EagerRunner
from inference_pio.errors import InvalidSetting
from tests import tiny


def room(name: str = "qwen3", rows: int = 2, tokens: int = 9) -> tuple[Any, Bucket]:
    model = tiny.build(name)
    decoder = decoder_of(model)
    assert isinstance(decoder, Decoder)
    return model, Bucket(model, decoder, rows, tokens, ahead=1)


@pytest.mark.parametrize("name", ["qwen3", "glm4_moe_lite"])
def test_stores_made_beforehand_are_the_ones_that_a_prompt_fills(name: str) -> None:
    model, bucket = room(name)
    bucket.clear(None)
    bucket.furnish()
    addresses = [bucket.store(number).keys.data_ptr() for number in range(2)]
    given = tiny.inputs(name, model)
    with torch.no_grad():
        for _ in range(2):
            bucket.clear(None)
            model(**given, past_key_values=bucket.cache, use_cache=True)
    assert bucket.cache.get_seq_length() == given["input_ids"].shape[1]
    assert [bucket.store(number).keys.data_ptr() for number in range(2)] == addresses


@pytest.mark.parametrize("name", ["llama", "qwen3_vl", "glm4_moe", "glm4_moe_lite"])
def test_angles_are_those_that_the_library_makes(name: str) -> None:
    model, bucket = room(name)
    decoder = model.model.language_model if name == "qwen3_vl" else model.model
    rows = 3 if name == "qwen3_vl" else None
    for position in (0, 5, 255):
        positions = torch.full((1, 1) if rows is None else (rows, 1, 1), position)
        cos, sin = decoder.rotary_emb(torch.zeros(1, 1, 1), positions)
        assert torch.equal(bucket.cos[position], cos[0, 0])
        assert torch.equal(bucket.sin[position], sin[0, 0])


def test_it_grows_with_what_it_holds_and_forgets_recorded_steps() -> None:
    model, bucket = room()
    bucket.clear(None)
    with torch.no_grad():
        model(**tiny.inputs("qwen3", model), past_key_values=bucket.cache, use_cache=True)
    bucket.keep("key", EagerRunner(lambda: None))
    before = bucket.store(1).keys[:, :8].clone()
    small = bucket.nbytes
    bucket.grow(257, 8)
    assert (bucket.capacity, len(bucket.cos), bucket.runner("key")) == (512, 512, None)
    assert torch.equal(bucket.store(1).keys[:, :8], before)
    assert bucket.store(1).capacity == 512
    assert bucket.nbytes > small


def test_padding_is_told_for_one_call() -> None:
    _, bucket = room()
    bucket.clear(torch.tensor([[0, 0, 1], [1, 1, 1]]))
    assert bucket.padded
    assert bucket.cache.span.starts is not None
    assert bucket.cache.span.starts.tolist() == [2, 0]
    bucket.clear(torch.ones(2, 3))
    assert not bucket.padded
    assert bucket.cache.span.starts is None
    with pytest.raises(InvalidSetting, match="padded on the left"):
        bucket.clear(torch.tensor([[1, 1, 0], [1, 1, 1]]))


def test_the_recorded_steps_used_last_are_kept() -> None:
    _, bucket = room()
    for number in range(KEPT_RUNNERS):
        bucket.keep(number, EagerRunner(lambda: None))
    first = bucket.runner(0)
    bucket.keep("new", EagerRunner(lambda: None))
    assert bucket.runner(0) is first
    assert bucket.runner(1) is None


def test_logits_are_left_where_the_host_looks_whoever_recorded_them() -> None:
    _, bucket = room()
    with torch.inference_mode():
        place = bucket.logits.data_ptr()
    assert bucket.logits.shape == (2, bucket.decoder.head.out_features)
    assert not bucket.logits.is_inference()
    assert bucket.logits.data_ptr() == place


def test_its_memory_is_free_as_soon_as_it_is_closed() -> None:
    _, bucket = room()
    bucket.keep("key", EagerRunner(partial(lambda held: held.slots.enter(), bucket)))
    tokens = weakref.ref(bucket.slots.tokens)
    gc.disable()
    try:
        bucket.close()
        del bucket
        assert tokens() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("rows", [1, 2])
def test_a_cache_is_handed_out_as_the_library_lays_it(rows: int) -> None:
    model: Any = tiny.build("qwen3")
    decoder = decoder_of(model)
    assert isinstance(decoder, Decoder)
    bucket = Bucket(model, decoder, rows, 40, ahead=1)
    with torch.no_grad():
        model(input_ids=torch.ones(rows, 9, dtype=torch.int64), past_key_values=bucket.cache, use_cache=True)
    for number, layer in enumerate(bucket.handed_out(model, 7).layers):
        for handed, held in zip((layer.keys, layer.values), bucket.store(number).views(7), strict=True):
            assert handed.is_contiguous()
            assert torch.equal(handed, held)
