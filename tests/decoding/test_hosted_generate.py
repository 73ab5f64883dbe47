"""The user's unchanged `generate` over a cache on the host: the same tokens, exact undo, sites with their reasons."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch

from inference_pio.cache import HostCache
from inference_pio.decoding.hosted_generate import (
    host_the_cache,
    hosted_calls,
    placement_decision,
    placement_sites,
    said_of_placement,
)
from inference_pio.undo.fingerprint import fingerprint
from inference_pio.undo.journal import Journal
from inference_pio.undo.transaction import Transaction
from tests import tiny
from tests.cache.late_lane import put_late_lanes
from tests.cache.walks import prompt

GPU = torch.device("cuda")


def hosted(model: Any, resident: int = 0, ahead: int = 2) -> Journal:
    journal = Journal(model)
    sites = [site for site in placement_sites(model, GPU, resident) if site.acts]
    with journal.step("host"):
        host_the_cache(journal, model, placement_decision(model, sites, ahead))
    return journal


def say(model: Any, given: dict[str, torch.Tensor], **options: Any) -> Any:
    asked = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True} | options
    return model.generate(**given, **asked)


@pytest.mark.parametrize("name", tiny.HF_NAMES)
@pytest.mark.parametrize("resident", [0, 1])
def test_tokens_are_the_same_and_undo_is_exact(name: str, resident: int, monkeypatch: pytest.MonkeyPatch) -> None:
    put_late_lanes(monkeypatch)
    model = tiny.build(name)
    given = prompt(2, 40, (0, 9))
    before = fingerprint(model)
    with tiny._rope_deltas_kept(model):
        wanted = say(model, given, output_logits=True)
        journal = hosted(model, resident)
        found = say(model, given, output_logits=True)
    assert torch.equal(found.sequences, wanted.sequences)
    assert all(torch.equal(one, other) for one, other in zip(found.logits, wanted.logits, strict=True))
    assert isinstance(found.past_key_values, HostCache)
    assert len(found.past_key_values.host_layers) == len(found.past_key_values.layers) - resident
    assert hosted_calls(model).calls == 1  # type: ignore[union-attr]
    transaction = Transaction(journal)
    transaction.undo(list(journal.frames))
    transaction.commit()
    assert hosted_calls(model) is None
    assert before.differences(fingerprint(model)) == []


def test_layers_come_as_far_ahead_as_was_asked_for_in_a_copy_too() -> None:
    model: Any = tiny.build("llama")
    hosted(model, ahead=3)
    for one in (model, copy.deepcopy(model)):
        assert say(one, prompt(1, 30)).past_key_values.staging.ahead == 3


def test_a_decision_that_was_saved_before_layers_came_further_ahead_is_kept_to() -> None:
    model: Any = tiny.build("llama")
    decision = placement_decision(model, placement_sites(model, GPU, 0))
    del decision["layers_ahead"]
    assert "come back 1 ahead" in said_of_placement(decision)
    journal = Journal(model)
    with journal.step("host"):
        host_the_cache(journal, model, decision)
    assert say(model, prompt(1, 30)).past_key_values.staging.ahead == 1


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 2}, {"prompt_lookup_num_tokens": 3}, {"num_return_sequences": 2, "num_beams": 2}],
    ids=str,
)
def test_beams_and_guesses_go_through_it(options: dict[str, Any]) -> None:
    model = tiny.build("llama")
    wanted = say(model, prompt(1, 30), **options).sequences
    hosted(model)
    assert torch.equal(say(model, prompt(1, 30), **options).sequences, wanted)


def test_a_model_that_guesses_for_another_is_given_such_a_cache_too() -> None:
    model, guessing = tiny.build("llama"), tiny.build("llama", seed=1)
    wanted = say(model, prompt(1, 60)).sequences
    hosted(model)
    hosted(guessing)
    assert torch.equal(say(model, prompt(1, 60), assistant_model=guessing).sequences, wanted)
    assert hosted_calls(guessing).calls >= 1  # type: ignore[union-attr]


def test_sites_claim_the_placement_and_tell_what_stays() -> None:
    sites = placement_sites(tiny.build("qwen3"), GPU, 1)
    assert [site.path for site in sites] == [f"model.layers.{number}.self_attn" for number in range(3)]
    assert all(site.claims == {"kv.placement"} and site.role == "kv_cache" for site in sites)
    stays = "it is one of the 1 layers that stay on the device (resident_layers)"
    assert [site.skip for site in sites] == [stays, None, None]
    assert [site.acts for site in placement_sites(tiny.build("qwen3"), GPU, 2)] == [False, False, True]
    assert [site.acts for site in placement_sites(tiny.build("qwen3"), GPU, 9)] == [False] * 3
    config: Any = tiny.CONFIGS["qwen3"]()
    config.num_hidden_layers, config.layer_types = 6, ["full_attention"] * 6
    even = placement_sites(tiny.build("qwen3", config=config), GPU, 2)
    assert [site.acts for site in even] == [False, True, True, False, True, True]
    sites = placement_sites(tiny.build("qwen3"), torch.device("cpu"), 0)
    assert {site.skip for site in sites} == {"the model is on the host itself, and so is its cache"}
    assert len(sites) == 3
    (site,) = placement_sites(tiny.build("plain"), GPU, 0)
    assert "no transformers configuration" in str(site.skip)


def test_where_a_latent_is_kept_its_bytes_are_told() -> None:
    model = tiny.build("glm4_moe_lite", torch.bfloat16)
    sites = [site for site in placement_sites(model, GPU, 1) if site.acts]
    decision = placement_decision(model, sites)
    assert decision == {
        "layers": {"model.layers.1.self_attn": 1}, "bytes_a_token_host": 80, "bytes_a_token_device": 80,
        "bytes_a_token_staging": 160, "layers_ahead": 2,
    }  # fmt: skip
    said = said_of_placement(decision)
    assert "of 1 layers on the host, 80 bytes a token and row; 80 bytes stay on the device" in said
    assert "160 bytes are buffers, in which layers come back 2 ahead" in said
    sites = [site for site in placement_sites(model, GPU, 0) if site.acts]
    assert [placement_decision(model, sites, ahead)["bytes_a_token_staging"] for ahead in (1, 2, 3)] == [160, 240, 240]


def addresses(model: Any) -> dict[int, int]:
    calls = hosted_calls(model)
    assert calls is not None
    return {number: room.rows.data_ptr() for number, room in calls.rooms.items()}


def test_room_is_kept_for_the_next_call_and_never_taken_from_a_cache_that_is_held() -> None:
    model = tiny.build("llama")
    wanted = [say(model, prompt(rows, tokens)).sequences for rows, tokens in ((1, 30), (1, 40), (2, 30))]
    hosted(model)
    assert torch.equal(say(model, prompt(1, 30)).sequences, wanted[0])
    first = addresses(model)
    assert torch.equal(say(model, prompt(1, 40)).sequences, wanted[1])
    assert addresses(model) == first
    assert len(first) == 3
    kept = say(model, prompt(1, 30))
    before = [layer.slab.rows.clone() for layer in kept.past_key_values.layers]
    assert torch.equal(say(model, prompt(1, 40)).sequences, wanted[1])
    for layer, rows in zip(kept.past_key_values.layers, before, strict=True):
        assert torch.equal(layer.slab.rows[: layer.length], rows[: layer.length])
    assert torch.equal(say(model, prompt(2, 30)).sequences, wanted[2]), "room of another kind is not taken"


@pytest.mark.parametrize("number", [slice(None), slice(1, 2)], ids=["all", "one"])
def test_room_is_not_taken_from_layers_that_are_held_without_their_cache(number: slice) -> None:
    model = tiny.build("llama")
    hosted(model)
    kept = say(model, prompt(1, 30)).past_key_values.layers[number]
    before = [layer.slab.rows[: layer.length].clone() for layer in kept]
    say(model, prompt(1, 40))
    for layer, rows in zip(kept, before, strict=True):
        assert torch.equal(layer.slab.rows[: layer.length], rows)


def test_room_goes_with_the_optimization() -> None:
    model = tiny.build("llama")
    journal = hosted(model)
    say(model, prompt(1, 30))
    rooms = [weakref.ref(room) for room in hosted_calls(model).rooms.values()]  # type: ignore[union-attr]
    transaction = Transaction(journal)
    transaction.undo(list(journal.frames))
    transaction.commit()
    gc.collect()
    assert [room() for room in rooms] == [None] * 3


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "glm4_moe_lite"])
def test_on_a_gpu_tokens_are_the_same_call_after_call(name: str) -> None:
    model: Any = tiny.build(name, torch.bfloat16).to("cuda")
    given = {key: value.to("cuda") for key, value in prompt(2, 400, (0, 31)).items()}
    wanted = say(model, given, max_new_tokens=40, output_logits=True)
    hosted(model, 1)
    for _ in range(3):
        found = say(model, given, max_new_tokens=40, output_logits=True)
        assert torch.equal(found.sequences, wanted.sequences)
        for ours, theirs in zip(found.logits, wanted.logits, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
        layer = found.past_key_values.host_layers[0]
        assert layer.slab.rows.is_pinned()
        assert found.past_key_values.staging.early > 0
        del found, layer
