"""The user's own `generate` keeps its tokens as codes, counts what it leaves alone, and is given back exactly."""

from __future__ import annotations

import copy
import functools
import types
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from inference_pio.cache import KV_FORMATS, CodedCache
from inference_pio.decoding.coded_generate import (
    CODED,
    code_the_cache,
    coded_calls,
    kv_decision,
    kv_sites,
    said_of,
)
from inference_pio.undo.fingerprint import fingerprint
from inference_pio.undo.frame import Frame
from inference_pio.undo.journal import Journal
from tests import tiny
from tests.cache.test_paged_cache import sliding_model
from tests.cache.walks import prompt
from tests.undo.help import take_back


def coded(model: Any, kv_format: str = "int8") -> tuple[Journal, Frame]:
    journal = Journal(model)
    sites = [site for site in kv_sites(model, kv_format) if site.acts]
    with journal.step("code") as frame:
        code_the_cache(journal, model, kv_decision(model, sites, kv_format))
    return journal, frame


def say(model: Any, given: dict[str, torch.Tensor], **options: Any) -> Any:
    return model.generate(**given, **{"max_new_tokens": 6, "do_sample": False, **options})


@pytest.mark.parametrize("name", tiny.HF_NAMES)
@pytest.mark.parametrize("kv_format", KV_FORMATS)
def test_generate_says_what_it_says_with_such_a_cache(name: str, kv_format: str) -> None:
    model, given = tiny.build(name), prompt(2, 200, (0, 9))
    plain = say(model, given, return_dict_in_generate=True, output_logits=True)
    wanted = say(model, given, past_key_values=CodedCache.of(model, kv_format))
    journal, frame = coded(model, kv_format)
    found = say(model, given, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(found.sequences, wanted)
    cache = found.past_key_values
    assert isinstance(cache, CodedCache)
    assert cache.report()["layers"] == {kv_format: len(cache.layers)}
    assert cache.coded_layers[0].coded == 128
    assert torch.equal(found.logits[0], plain.logits[0])  # a prompt sees itself as it is
    assert not torch.equal(found.logits[1], plain.logits[1])
    take_back(journal, frame)
    assert type(say(model, given, return_dict_in_generate=True).past_key_values) is DynamicCache


@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_generate_is_given_back_exactly(name: str) -> None:
    model = tiny.build(name)
    before = fingerprint(model)
    journal, frame = coded(model)
    assert before.differences(fingerprint(model)) != []
    take_back(journal, frame)
    assert before.differences(fingerprint(model)) == []


@pytest.mark.parametrize("bound", [False, True])
def test_a_door_of_the_users_own_is_gone_through_and_comes_back(bound: bool) -> None:
    model, heard = tiny.build("qwen3"), []
    inner = type(model)._prepare_cache_for_generation

    def listening(self: Any, *given: Any, **options: Any) -> Any:
        heard.append(1)
        return inner(self, *given, **options)

    own = types.MethodType(listening, model) if bound else functools.partial(listening, model)
    model._prepare_cache_for_generation = own
    journal, frame = coded(model)
    found = say(model, prompt(1, 150), return_dict_in_generate=True)
    assert isinstance(found.past_key_values, CodedCache)
    assert heard == [1]
    take_back(journal, frame)
    assert model._prepare_cache_for_generation is own


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"past_key_values": DynamicCache()}, "past_key_values was given"),
        ({"use_cache": False}, "the call uses no cache"),
        ({"cache_implementation": "static"}, "cache_implementation='static' was given"),
        ({"cache_implementation": "dynamic"}, None),
        ({"num_beams": 2}, None),
        ({"do_sample": True}, None),
        ({"prompt_lookup_num_tokens": 3}, None),
        ({"prefill_chunk_size": 50}, None),
        ({"generation_config": GenerationConfig(max_new_tokens=3, use_cache=False)}, "the call uses no cache"),
    ],
    ids=str,
)
def test_calls_are_counted_and_those_that_want_another_cache_get_it(
    options: dict[str, Any], reason: str | None
) -> None:
    model = tiny.build("qwen3")
    coded(model)
    rows = 1 if "prompt_lookup_num_tokens" in options else 2
    found = say(model, prompt(rows, 150), return_dict_in_generate=True, **options)
    calls = coded_calls(model)
    assert calls is not None
    assert calls.to_json() == {
        "format": "int8", "calls": int(reason is None), "left_to_the_library": {reason: 1} if reason else {},
    }  # fmt: skip
    assert isinstance(found.past_key_values, CodedCache) == (reason is None)


def test_rows_may_change_from_call_to_call() -> None:
    model, plain = tiny.build("qwen3"), tiny.build("qwen3")
    coded(model)
    for rows in (1, 3, 2):
        wanted = say(plain, prompt(rows, 170), past_key_values=CodedCache.of(plain, "int8"))
        assert torch.equal(say(model, prompt(rows, 170)), wanted)


def test_pictures_are_answered_through_it() -> None:
    model = tiny.build("qwen3_vl")
    given = tiny.inputs("qwen3_vl", model, image=True)
    wanted = say(model, given, past_key_values=CodedCache.of(model, "int8"))
    coded(model)
    assert torch.equal(say(model, given), wanted)


def test_a_model_that_guesses_for_another_is_given_such_a_cache_too() -> None:
    model, guessing = tiny.build("llama"), tiny.build("llama", seed=1)
    coded(model)
    coded(guessing)
    wanted = say(model, prompt(1, 200))
    said = say(model, prompt(1, 200), assistant_model=guessing)
    assert said.shape == wanted.shape
    for one in (model, guessing):
        calls = coded_calls(one)
        assert calls is not None
        assert calls.calls >= 1


def test_a_copy_counts_its_own_calls() -> None:
    model = tiny.build("qwen3")
    coded(model)
    say(model, prompt(1, 10))
    other = copy.deepcopy(model)
    say(other, prompt(1, 10))
    say(other, prompt(1, 10))
    assert [coded_calls(one).calls for one in (model, other)] == [1, 2]  # type: ignore[union-attr]


def test_only_the_decided_layers_are_coded() -> None:
    model = tiny.build("qwen3")
    journal = Journal(model)
    sites = [site for site in kv_sites(model, "int4") if site.acts]
    decision = kv_decision(model, sites[:1], "int4")
    assert decision["layers"] == {"model.layers.0.self_attn": 0}
    with journal.step("code"):
        code_the_cache(journal, model, decision)
    cache = say(model, prompt(2, 10), return_dict_in_generate=True).past_key_values
    assert cache.report()["layers"] == {"int4": 1, "DynamicLayer": 2}


def test_sites_claim_the_format_and_tell_why_a_layer_keeps_the_librarys() -> None:
    sites = kv_sites(sliding_model(), "int8")
    assert [site.path for site in sites] == [f"model.layers.{number}.self_attn" for number in range(3)]
    assert all(site.claims == {"kv.format"} and site.role == "kv_cache" for site in sites)
    assert "a window of 20 tokens" in str(sites[0].skip)
    assert [site.skip for site in sites[1:]] == [None, None]
    (site,) = kv_sites(tiny.build("plain"), "int8")
    assert "no transformers configuration" in str(site.skip)


def test_widths_that_no_group_divides_are_told_in_the_plan() -> None:
    config: Any = tiny.CONFIGS["qwen3"]()
    config.head_dim = 134
    reasons = {site.skip for site in kv_sites(tiny.build("qwen3", config=config), "int8")}
    assert reasons == {"no group of 16 to 64 channels divides values of 134"}


@pytest.mark.parametrize(
    ("name", "kv_format", "ratio"),
    [("qwen3", "int8", 0.56), ("qwen3", "int4", 0.323), ("glm4_moe_lite", "int8", 0.625)],
)
def test_bytes_a_token_are_those_that_a_cache_then_holds(name: str, kv_format: str, ratio: float) -> None:
    model = tiny.build(name, torch.bfloat16)
    decision = kv_decision(model, kv_sites(model, kv_format), kv_format)
    cache = CodedCache.of(model, kv_format)
    with torch.no_grad():
        model(**prompt(2, 320), past_key_values=cache)
    report = cache.report()
    assert decision["bytes_a_token"] == report["bytes_a_token"]
    assert decision["bytes_a_token_before"] == report["bytes_a_token_uncoded"]
    assert decision["bytes_a_token"] / decision["bytes_a_token_before"] == pytest.approx(ratio, abs=0.005)
    said = said_of(decision)
    assert f"{decision['bytes_a_token']:g} bytes a token" in said
    assert "the last 64 to 127 tokens in bfloat16" in said


def test_nothing_is_coded_where_the_mark_is_gone() -> None:
    model = tiny.build("qwen3")
    coded(model)
    vars(model).pop(CODED)
    assert type(say(model, prompt(1, 9), return_dict_in_generate=True).past_key_values) is DynamicCache
