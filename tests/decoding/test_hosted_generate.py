"""The user's unchanged `generate` over a cache on the host: the same tokens, exact undo, sites with their reasons."""

from __future__ import annotations

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


def hosted(model: Any, resident: int = 0) -> Journal:
    journal = Journal(model)
    sites = [site for site in placement_sites(model, GPU, resident) if site.acts]
    with journal.step("host"):
        host_the_cache(journal, model, placement_decision(model, sites))
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
    assert hosted_calls(model).to_json() == {"placement": "host", "calls": 1, "left_to_the_library": {}}  # type: ignore[union-attr]
    transaction = Transaction(journal)
    transaction.undo(list(journal.frames))
    transaction.commit()
    assert hosted_calls(model) is None
    assert before.differences(fingerprint(model)) == []


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
    assert [site.skip for site in sites] == ["the first 1 layers stay on the device (resident_layers)", None, None]
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
        "bytes_a_token_staging": 160,
    }  # fmt: skip
    assert "of 1 layers on the host, 80 bytes a token and row; 80 bytes stay on the device" in said_of_placement(
        decision
    )
