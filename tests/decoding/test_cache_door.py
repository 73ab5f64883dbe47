from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import Cache, DynamicCache

from inference_pio.cache import CodedCache, HostCache
from inference_pio.decoding.cache_door import CacheCalls, put_caches
from inference_pio.undo.journal import Journal
from tests import tiny
from tests.cache.walks import prompt

NAME = "_calls_of_a_test"


class HostOnes(CacheCalls):
    def make(self, config: Any, but: tuple[int, ...]) -> Cache:
        return HostCache(config, but=but)


class CodedOnes(CacheCalls):
    def make(self, config: Any, but: tuple[int, ...]) -> Cache:
        return CodedCache(config, "int8", but=but)


def say(model: Any, **options: Any) -> Any:
    return model.generate(**prompt(1, 9), max_new_tokens=2, do_sample=False, return_dict_in_generate=True, **options)


def put(model: Any, calls: CacheCalls, name: str = NAME) -> CacheCalls:
    journal = Journal(model)
    with journal.step("door"):
        put_caches(journal, model, name, calls)
    return calls


def test_a_call_gets_the_cache_that_is_made_for_its_layers() -> None:
    model = tiny.build("qwen3")
    calls = put(model, HostOnes({"kind": "host"}, (0, 2)))
    assert say(model).past_key_values.report()["layers"] == {"host": 2, "device": 1}
    assert calls.to_json() == {"kind": "host", "calls": 1, "left_to_the_library": {}}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"past_key_values": DynamicCache()}, "past_key_values was given"),
        ({"use_cache": False}, "the call uses no cache"),
        ({"cache_implementation": "static"}, "cache_implementation='static' was given"),
    ],
)
def test_calls_that_want_another_get_it_and_are_counted(options: dict[str, Any], reason: str) -> None:
    model = tiny.build("qwen3")
    calls = put(model, HostOnes({}, (0, 1, 2)))
    assert not isinstance(say(model, **options).past_key_values, HostCache)
    assert calls.to_json() == {"calls": 0, "left_to_the_library": {reason: 1}}


def test_a_cache_of_another_optimization_stays_and_that_is_told() -> None:
    model = tiny.build("qwen3")
    first = put(model, CodedOnes({}, (0, 1, 2)))
    second = put(model, HostOnes({}, (0, 1, 2)), "_another")
    assert isinstance(say(model).past_key_values, CodedCache)
    assert (first.calls, second.calls) == (1, 0)
    assert second.left == {"another optimization makes its cache (CodedCache)": 1}


def test_copies_count_their_own() -> None:
    model = tiny.build("qwen3")
    calls = put(model, HostOnes({"kind": "host"}, (0, 1, 2)))
    say(model)
    other = copy.deepcopy(model)
    assert torch.equal(say(other).sequences, say(model).sequences)
    assert (calls.calls, vars(other)[NAME].calls, vars(other)[NAME].told) == (2, 1, {"kind": "host"})
