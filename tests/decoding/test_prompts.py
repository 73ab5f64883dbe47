"""A call behind a recorded prompt says what the library says; what changes is recorded anew."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio import get_optimization_manager
from inference_pio.decoding import engine as engine_module
from inference_pio.decoding import prompts as prompts_module
from inference_pio.decoding.prompt_runners import PromptRunners
from inference_pio.decoding.takeover import engine_of
from tests import tiny
from tests.decoding.conftest import Reading, Taken, prompt

Take = Callable[..., Taken]


def left(one: Taken) -> dict[str, int]:
    found: dict[str, int] = one.engine.counts.to_json()["prompts_left_to_the_library"]
    return found


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe", "glm4_moe", "glm4_moe_lite"])
def test_a_call_behind_a_recorded_prompt_says_what_the_library_says(name: str, take: Take) -> None:
    one = take(name, operations=Reading())
    calls = ((1, 1, 0), (2, 9, 0), (2, 9, 3), (1, 70, 0), (2, 64, 0), (3, 70, 64), (1, 9, 0), (2, 9, 0), (2, 9, 8))
    for rows, tokens, padded in calls:
        asked = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
        ours, theirs = one.both(**prompt(rows, tokens, padded, seed=tokens), **asked)
        assert torch.equal(ours.sequences, theirs.sequences)
        assert torch.allclose(ours.logits[0], theirs.logits[0], atol=1e-5)
        for mine, expected in zip(ours.past_key_values.layers, theirs.past_key_values.layers, strict=True):
            assert mine.keys.shape == expected.keys.shape
            assert torch.allclose(mine.keys[:, :, padded:], expected.keys[:, :, padded:], atol=1e-5)
    assert one.engine.counts.prompts == len(calls)
    assert left(one) == {}


def test_an_end_in_the_first_token_gives_the_cache_of_the_prompt(take: Take) -> None:
    one = take("qwen3", operations=Reading())
    first = int(one.plain.generate(**prompt(1), max_new_tokens=1, do_sample=False, pad_token_id=0)[0, -1])
    asked = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": first, "return_dict_in_generate": True}
    ours, theirs = one.both(**prompt(1), **asked)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert one.engine.counts.prompts == 1
    assert ours.past_key_values.get_seq_length() == theirs.past_key_values.get_seq_length() == 9


def test_what_cannot_be_recorded_is_the_librarys_and_not_tried_again(
    take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, tried = take("qwen3", operations=Reading()), list[int]()

    def record(rules: Any, bucket: Any, operations: Any, tokens: int) -> int:
        tried.append(tokens)
        raise RuntimeError("a layer asks the host\nfor a number")

    monkeypatch.setattr("inference_pio.decoding.call.record_prompt", record)
    for _ in range(3):
        ours, theirs = one.both(**prompt(), max_new_tokens=4, do_sample=False)
        assert torch.equal(ours, theirs)
        one.engine._empty()  # another room is no reason to try again
    assert tried == [9]
    assert left(one) == {"it could not be recorded (RuntimeError: a layer asks the host)": 3}
    assert one.engine.counts.left == {}


def test_a_length_that_cannot_be_recorded_leaves_the_others(take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    one = take("qwen3", operations=Reading())
    one.both(**prompt(), max_new_tokens=2, do_sample=False)
    inner = PromptRunners.record

    def record(self: Any, rows: int, length: int, *given: Any, padded: bool = False) -> None:
        if padded:
            raise RuntimeError("not these")
        inner(self, rows, length, *given, padded=padded)

    monkeypatch.setattr(PromptRunners, "record", record)
    for tokens, padded in ((9, 3), (12, 3), (9, 0), (70, 0)):
        ours, theirs = one.both(**prompt(2, tokens, padded), max_new_tokens=2, do_sample=False)
        assert torch.equal(ours, theirs)
    assert left(one) == {"it could not be recorded (RuntimeError: not these)": 2}
    assert one.engine.counts.prompts == 3


def test_too_little_memory_leaves_one_prompt_to_the_library(take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    one = take("qwen3", operations=Reading())
    kept = prompts_module.record_prompt

    def record(*given: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("inference_pio.decoding.call.record_prompt", record)
    ours, theirs = one.both(**prompt(), max_new_tokens=4, do_sample=False)
    assert torch.equal(ours, theirs)
    monkeypatch.setattr("inference_pio.decoding.call.record_prompt", kept)
    one.both(**prompt(), max_new_tokens=4, do_sample=False)
    assert left(one) == {"there was not enough memory to record it": 1}
    assert one.engine.counts.prompts == 1


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths that prompts are recorded for: what a graph reads stays where it was then."""
    lengths, record = list[int](), PromptRunners.record

    def noting(self: Any, rows: int, length: int, *given: Any, **how: Any) -> None:
        lengths.append(length)
        record(self, rows, length, *given, **how)

    monkeypatch.setattr(PromptRunners, "record", noting)
    return lengths


def test_prompts_are_recorded_once_for_each_length(take: Take, recorded: list[int]) -> None:
    one = take("qwen3", operations=Reading())
    for rows, tokens, padded in ((1, 70, 0), (1, 40, 0), (1, 200, 0), (2, 90, 0), (2, 9, 3), (2, 12, 4), (1, 64, 0)):
        one.both(**prompt(rows, tokens, padded), max_new_tokens=2, do_sample=False)
    assert recorded == [64, 128, 256, 128, 64], "the shortest first, once for a model"


def test_room_that_grows_is_recorded_in_anew(take: Take, recorded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "FIRST_ROOM", 8)  # so that it grows while tokens come
    one = take("qwen3", operations=Reading())
    for new in (4, 400, 4):
        ours, theirs = one.both(**prompt(1, 20), max_new_tokens=new, do_sample=False)
        assert torch.equal(ours, theirs)
    assert recorded == [64, 64]
    assert one.engine.counts.prompts == 3


def test_a_weight_that_is_rebound_is_recorded_anew(take: Take, recorded: list[int]) -> None:
    one = take("qwen3", operations=Reading())
    one.both(**prompt(), max_new_tokens=4, do_sample=False)
    for model in (one.model, one.plain):
        up = model.model.layers[1].mlp.up_proj
        up.weight = nn.Parameter(up.weight.detach().flip(0).clone())
    ours, theirs = one.both(
        **prompt(), max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    assert torch.equal(ours.sequences, theirs.sequences)
    assert torch.allclose(ours.logits[0], theirs.logits[0], atol=1e-5)
    assert recorded == [64, 64]


@pytest.mark.gpu
@pytest.mark.parametrize("also", [[], ["flash_attention"]], ids=["alone", "flash"])
@pytest.mark.parametrize(
    ("name", "implementation"),
    [("qwen3", None), *itertools.product(["qwen3_moe", "glm4_moe", "glm4_moe_lite"], [None, "eager", "grouped_mm"])],
)
def test_gpu_prompts_are_near_the_librarys_or_left_to_it(
    name: str, implementation: str | None, also: list[str]
) -> None:
    ours, plain = (tiny.build(name, dtype=torch.bfloat16).to("cuda") for _ in range(2))
    if implementation is not None:
        for model in (ours, plain):
            model.set_experts_implementation(implementation)
    get_optimization_manager().apply_optimizations(ours, ["kernel_fusion", *also])
    engine = engine_of(ours)
    assert engine is not None
    for tokens, padded in ((9, 0), (70, 0), (70, 40), (300, 0), (9, 3)):
        given = {key: tensor.cuda() for key, tensor in prompt(2, tokens, padded, seed=tokens).items()}
        asked = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_logits": True, "pad_token_id": 0}
        found, expected = (model.generate(**given, do_sample=False, **asked) for model in (ours, plain))
        cosine = torch.cosine_similarity(found.logits[0].float(), expected.logits[0].float())
        assert cosine.min() > 0.999
    assert engine.counts.left == {}
    told = engine.counts.to_json()
    assert told["prompts"] + sum(told["prompts_left_to_the_library"].values()) == 5
    assert told["prompts"] == (0 if implementation == "eager" else 5), told
