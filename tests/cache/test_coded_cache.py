"""A model answers with this cache as with the library's whose old tokens are rounded, in forward and in generate."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Cache, DynamicCache, DynamicLayer, Lfm2Config, T5Config

from inference_pio.cache import KV_FORMATS, CodedCache
from inference_pio.cache.kv_format import forms_of
from inference_pio.cache.store import Kind
from inference_pio.errors import InvalidModel, InvalidSetting, UnknownName
from inference_pio.kernels.page_codes import code_pages, page_values
from tests import tiny
from tests.cache.test_paged_cache import generate, sliding_model
from tests.cache.walks import prompt, walk

EACH_MODEL = pytest.mark.parametrize("name", tiny.HF_NAMES)
EACH_FORMAT = pytest.mark.parametrize("kv_format", KV_FORMATS)


class RoundedLayer(DynamicLayer):
    """The library's own layer, in which what is old enough is rounded in place: the answers that ours must give."""

    kv_format = ""
    rounded = 0

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        self.keys, self.values = keys.clone(), values.clone()
        forms = forms_of(self.kv_format, Kind.of(keys, values))
        while keys.shape[2] - self.rounded >= 128:
            page = slice(self.rounded, self.rounded + 64)
            for states, form in zip((self.keys, self.values), forms, strict=True):
                if form is not None:
                    states[:, :, page] = page_values(code_pages(states[:, :, page], form), form, states.dtype)
            self.rounded += 64
        return keys, values


def rounded_cache(model: Any, kv_format: str) -> Cache:
    cache = DynamicCache(config=model.config)
    for layer in cache.layers:
        if type(layer) is DynamicLayer:
            layer.__class__ = RoundedLayer
            layer.kv_format = kv_format  # type: ignore[attr-defined]
    return cache


@EACH_MODEL
@EACH_FORMAT
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_are_those_of_a_rounded_cache_bit_by_bit(name: str, kv_format: str, dtype: torch.dtype) -> None:
    model, given = tiny.build(name, dtype), prompt(2, 300, (9, 0))
    steps = (200, 33, 1, -3, 1)
    ours, theirs = (
        walk(model, cache, given, steps) for cache in (CodedCache.of(model, kv_format), rounded_cache(model, kv_format))
    )
    assert torch.equal(ours, theirs)


@EACH_MODEL
def test_a_short_prompt_is_answered_bit_by_bit_as_by_the_library(name: str) -> None:
    model, given = tiny.build(name, torch.bfloat16), prompt(2, 120, (3, 0))
    ours, theirs = (generate(model, each, given) for each in (CodedCache.of(model, "int4"), DynamicCache()))
    assert torch.equal(ours, theirs)


@EACH_MODEL
def test_eager_attention_reads_it_too_and_gives_its_weights(name: str) -> None:
    model, given = tiny.build(name), prompt(2, 200)
    model.set_attn_implementation("eager")
    cache = CodedCache.of(model, "int8")
    with torch.no_grad():
        model(**given, past_key_values=cache)
        out = model(prompt(2, 1)["input_ids"], past_key_values=cache, output_attentions=True)
    assert out.attentions[0].shape[-1] == 201
    assert cache.coded_layers[0].coded == 128


@EACH_FORMAT
@pytest.mark.parametrize("name", ["qwen3", "glm4_moe_lite", "gpt2"])
def test_generate_beams_chunks_and_guesses_run_through_it(name: str, kv_format: str) -> None:
    model, given = tiny.build(name), prompt(2, 190, (0, 5))
    plain = generate(model, CodedCache.of(model, kv_format), given)
    assert torch.equal(generate(model, rounded_cache(model, kv_format), given), plain)
    beams: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2, "early_stopping": True}
    found = [
        generate(model, each, given, **beams)
        for each in (CodedCache.of(model, kv_format), rounded_cache(model, kv_format))
    ]
    assert torch.equal(*found)
    one = {key: value[:1] for key, value in given.items()}
    for options in ({"prefill_chunk_size": 70}, {"prompt_lookup_num_tokens": 4}):
        cache = CodedCache.of(model, kv_format)
        said = generate(model, cache, one, **options)
        assert cache.get_seq_length() == said.shape[1] - 1
        assert cache.coded_layers[0].coded >= 64


def test_a_cache_goes_on_where_a_call_of_generate_left_it() -> None:
    model, given = tiny.build("qwen3"), prompt(2, 250)
    cache = CodedCache.of(model, "int8")
    said = generate(model, cache, given)
    before = [part[:, :, :2].clone() for side in cache.coded_layers[0].pages for part in side.parts]
    other = copy.deepcopy(cache)
    longer = torch.cat([said, prompt(2, 80, seed=1)["input_ids"]], 1)
    again = [
        generate(model, each, {"input_ids": longer, "attention_mask": torch.ones_like(longer)})
        for each in (cache, other)
    ]
    assert torch.equal(*again)
    after = [part[:, :, :2] for side in cache.coded_layers[0].pages for part in side.parts]
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_sliding_windows_keep_the_librarys_layers() -> None:
    model, given = sliding_model(), prompt(2, 200)
    cache, theirs = CodedCache.of(model, "int8"), rounded_cache(model, "int8")
    assert cache.is_sliding == [True, False, False]
    assert torch.equal(*(walk(model, each, given, (150, 1)) for each in (cache, theirs)))
    assert cache.report()["layers"] == {"DynamicSlidingWindowLayer": 1, "int8": 2}
    assert cache.report()["bytes_library_layers"] > 0


def test_states_of_other_kinds_keep_the_librarys_layers_and_are_counted() -> None:
    torch.manual_seed(0)
    kinds = ["conv", "full_attention", "conv", "full_attention"]
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Lfm2Config(vocab_size=131, num_hidden_layers=4, layer_types=kinds, pad_token_id=0, **sizes)
    model, given = AutoModelForCausalLM.from_config(config).eval(), prompt(2, 200)
    cache = CodedCache.of(model, "int8")
    said = generate(model, cache, given)
    assert torch.equal(said, generate(model, rounded_cache(model, "int8"), given))
    report = cache.report()
    assert report["layers"] == {"LinearAttentionLayer": 2, "int8": 2}
    assert report["bytes_library_layers"] >= 2 * 2 * 64 * 3 * 4  # layers, rows, channels, states, float32
    assert cache.nbytes == report["bytes_coded"] + report["bytes_recent"] + report["bytes_library_layers"]


def test_layers_named_by_number_keep_the_librarys() -> None:
    model = tiny.build("qwen3")
    cache = CodedCache(model.config, "int8", but=(1,))
    assert [type(layer).__name__ for layer in cache.layers] == ["CodedLayer", "DynamicLayer", "CodedLayer"]


@EACH_MODEL
@EACH_FORMAT
def test_the_report_counts_every_byte(name: str, kv_format: str) -> None:
    model = tiny.build(name)
    cache = CodedCache.of(model, kv_format)
    assert cache.nbytes == 0
    walk(model, cache, prompt(2, 64 * 7), (), new=0)
    report, layers = cache.report(), cache.coded_layers
    assert json.loads(json.dumps(report)) == report
    assert (report["format"], report["tokens"], report["tokens_coded"]) == (kv_format, 448, 384)
    assert report["layers"] == {kv_format: len(layers)}
    assert report["bytes_coded"] == 2 * 384 * report["bytes_a_token"]
    assert report["bytes_recent"] == 2 * 64 * report["bytes_a_token_uncoded"]
    assert report["bytes_a_token"] < report["bytes_a_token_uncoded"]
    assert cache.nbytes == sum(layer.nbytes for layer in layers)
    cache.reset()
    assert (cache.nbytes, cache.get_seq_length()) == (0, 0)


def test_what_it_cannot_serve_is_refused() -> None:
    model = tiny.build("qwen3")
    with pytest.raises(UnknownName, match="unknown kv_cache format 'int3'"):
        CodedCache.of(model, "int3")
    with pytest.raises(InvalidSetting, match="'none' codes nothing"):
        CodedCache.of(model, "none")
    with pytest.raises(InvalidModel, match="no transformers configuration"):
        CodedCache.of(tiny.build("plain"), "int8")
    with pytest.raises(InvalidModel, match="no encoder-decoder"):
        CodedCache(T5Config(), "int8")
    with pytest.raises(InvalidSetting, match=r"torch.no_grad"):
        model(**prompt(1, 5), past_key_values=CodedCache.of(model, "int8"))
