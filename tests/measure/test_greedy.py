from __future__ import annotations

import pytest
import torch
from torch import nn

from inference_pio.errors import MeasureError
from inference_pio.measure.greedy import GreedyReference, continuation
from inference_pio.measure.proportion import Proportion
from inference_pio.measure.text import sampled_tokens
from tests import tiny

PROMPTS = sampled_tokens(120, 12, seed=3).view(3, 4)


@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_a_model_goes_on_as_it_did(name: str) -> None:
    model = tiny.build(name)
    agreement = GreedyReference.record(model, PROMPTS, 9).compare(model)
    assert (agreement.agreed, agreement.interval, agreement.identical) == (1.0, (1.0, 1.0), Proportion(3, 3))


def test_what_comes_after_the_first_other_token_does_not_count() -> None:
    model = tiny.build("llama")
    reference = GreedyReference.record(model, PROMPTS, 8)
    changed = reference.said.clone()
    changed[0, 2] += 1
    agreement = GreedyReference(PROMPTS, changed).compare(model)
    assert agreement.agreed == pytest.approx((2 + 8 + 8) / 24)
    assert agreement.identical == Proportion(2, 3)
    assert agreement.to_json()["greedy_agreement"] == agreement.agreed


def test_an_end_of_text_ends_nothing() -> None:
    model = tiny.build("llama")
    first = int(continuation(model, PROMPTS, 2)[0, 0])
    model.generation_config.eos_token_id = first
    assert continuation(model, PROMPTS, 6).shape == (3, 6)


def test_a_model_that_cannot_generate_is_told() -> None:
    class Mute(nn.Module):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return input_ids

    with pytest.raises(MeasureError, match="no generate"):
        continuation(Mute().eval(), PROMPTS, 2)
