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


def test_the_judge_remembers_the_model_as_it_was() -> None:
    model = tiny.build("llama")
    text = SurgeryText(model, SurgeryParameters(text=ROWS))
    judge = text.held_out
    assert judge.divergence(model) == 0
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(3.0)  # type: ignore[union-attr, index]
    assert text.held_out is judge
    assert judge.divergence(model) > 0
