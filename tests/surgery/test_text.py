"""One text for all edits: the given one, parted once, with the answers of the model as it was when first asked."""

from __future__ import annotations

import torch

from inference_pio.surgery.parameters import SurgeryParameters
from inference_pio.surgery.text import SurgeryText
from tests import tiny

ROWS = [[1 + (place + row) % 90 for place in range(16)] for row in range(8)]


def test_it_is_parted_into_what_is_learned_from_and_what_judges() -> None:
    text = SurgeryText(tiny.build("llama"), SurgeryParameters(text=ROWS))
    assert text.source.tokens == 128
    assert (text.learned.tokens, text.held_out.source.tokens) == (112, 16)


def test_some_tokens_are_others_in_what_is_fitted_to_alone() -> None:
    text = SurgeryText(tiny.build("llama"), SurgeryParameters(edits=["attention"], text=ROWS, stray=0.5))
    plain, strayed = (torch.cat([one["input_ids"] for one in of.batches]) for of in (text.learned, text.strayed))
    assert 0.3 < float((plain != strayed).double().mean()) < 0.7
    assert all(one["input_ids"][0].tolist() in ROWS for one in text.held_out.source.batches)
    none = SurgeryText(tiny.build("llama"), SurgeryParameters(edits=["attention"], text=ROWS, stray=0.0))
    assert none.strayed is none.learned


def test_the_judge_remembers_the_model_as_it_was() -> None:
    model = tiny.build("llama")
    text = SurgeryText(model, SurgeryParameters(text=ROWS))
    judge = text.held_out
    assert judge.divergence(model) == 0
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(3.0)  # type: ignore[union-attr, index]
    assert text.held_out is judge
    assert judge.divergence(model) > 0
