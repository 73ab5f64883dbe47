"""What a call asks for is read as the library reads it, and answered in its terms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from inference_pio.decoding.prepare import Asked, first_positions, most_tokens, why_not_this_call
from tests import tiny

REASONS: dict[str, dict[str, Any]] = {
    "beam search": {"num_beams": 2},
    "beam sample": {"num_beams": 2, "do_sample": True},
    "contrastive search": {"penalty_alpha": 0.6, "top_k": 4},
    "assisted generation": {"prompt_lookup_num_tokens": 3},
    "custom_generate was given": {"custom_generate": "somebody/something"},
    "past_key_values was given": {"past_key_values": object()},
    "synced_gpus was given": {"synced_gpus": True},
    "output_attentions was given": {"output_attentions": True},
    "use_cache=False was given": {"use_cache": False},
    "cache_implementation='offloaded' was given": {"cache_implementation": "offloaded"},
}


@pytest.mark.parametrize("reason", REASONS)
def test_a_reason_counts_where_the_call_gives_it(reason: str) -> None:
    assert why_not_this_call(Asked(REASONS[reason], None, GenerationConfig())) == reason


ARGUMENTS = {"custom_generate", "past_key_values", "synced_gpus"}


@pytest.mark.parametrize("place", ["given", "own"])
@pytest.mark.parametrize("reason", [reason for reason, settings in REASONS.items() if not ARGUMENTS & settings.keys()])
def test_a_reason_counts_where_a_configuration_gives_it(reason: str, place: str) -> None:
    sources: dict[str, Any] = {"given": None, "own": GenerationConfig(), place: GenerationConfig(**REASONS[reason])}
    assert why_not_this_call(Asked({}, **sources)) == reason


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "top_k": 5}, {"cache_implementation": "static"}])
def test_what_is_served_gives_no_reason(settings: dict[str, Any]) -> None:
    assert why_not_this_call(Asked(settings, None, GenerationConfig())) is None


def test_the_first_word_counts() -> None:
    asked = Asked({"num_beams": 1}, GenerationConfig(num_beams=4), GenerationConfig(num_beams=5))
    assert why_not_this_call(asked) is None
    assert asked.no_such_name is None


def test_the_prompt_may_come_as_embeddings() -> None:
    settled = GenerationConfig(max_length=20)
    assert most_tokens(settled, torch.zeros(2, 7), {}) == (7, 13)
    assert most_tokens(settled, torch.zeros(2, 0), {"inputs_embeds": torch.zeros(2, 5, 3)}) == (5, 20)


def test_the_next_token_stands_where_the_library_would_put_it() -> None:
    model: Any = tiny.build("llama")
    tokens, mask = torch.ones(2, 5, dtype=torch.int64), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    cache = model(input_ids=tokens[:, :4], attention_mask=mask[:, :4], use_cache=True).past_key_values
    given = {"attention_mask": mask, "past_key_values": cache, "use_cache": True}
    assert first_positions(model, tokens, given, 4).tolist() == [4]
    given["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    assert first_positions(model, tokens, given, 4).tolist() == [2, 4]
    given["position_ids"] = torch.stack([given["position_ids"], *[given["position_ids"] + 7] * 3])
    assert first_positions(model, tokens, given, 4).tolist() == [9, 11]

    class Silent:
        def prepare_inputs_for_generation(self, tokens: Any, **given: Any) -> dict[str, Any]:
            return {}

    assert first_positions(Silent(), tokens, {}, 4).tolist() == [4]
