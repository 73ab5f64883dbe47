from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from inference_pio.errors import MeasureError
from inference_pio.measure.needles import NeedleFormat, needle_grid, needle_questions
from inference_pio.measure.proportion import Proportion
from tests.integration.test_measured import byte_tokenizer

TEXT = "Some text without any number in it. " * 80


class Reader(nn.Module):
    """Finds the fact that is asked for by plain search, where it lies in the last `sight` characters."""

    def __init__(self, sight: int = 10**6) -> None:
        super().__init__()
        self.sight = sight

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        tokenizer, ids = byte_tokenizer(), input_ids[0].tolist()
        text = tokenizer.decode(ids)
        asked = text.rindex("The secret number")
        question = text[asked : text.index(" is", asked) + 3]
        found = text[max(0, asked - self.sight) : asked].split(question)
        value = tokenizer(found[1].split(".")[0])["input_ids"] if len(found) > 1 else []
        logits = torch.zeros(1, len(ids), 300)
        for place, token in enumerate(value):  # what is given ends one token before the answer does
            logits[0, len(ids) - len(value) + place, token] = 1.0
        return SimpleNamespace(logits=logits)


def test_a_grid_shows_how_far_a_model_sees() -> None:
    grid = needle_grid(Reader(150).eval(), byte_tokenizer(), TEXT, [100, 200], [0.0, 1.0], per_cell=3)
    assert grid.at_length(100) == Proportion(6, 6)
    assert grid.cells[200, 0.0] == Proportion(0, 3)
    assert grid.cells[200, 1.0] == Proportion(3, 3)
    assert grid.total == Proportion(9, 12)
    assert grid.to_json()[0]["length"] == 100


def test_questions_are_of_the_asked_length_and_hold_their_fact_at_its_depth() -> None:
    tokenizer = byte_tokenizer()
    haystack = torch.tensor(tokenizer(TEXT)["input_ids"])
    for depth in (0.0, 0.5, 1.0):
        for question in needle_questions(tokenizer, haystack, 400, depth, 3, 0, NeedleFormat()):
            ids = question.inputs["input_ids"]
            text = tokenizer.decode(ids[0].tolist())
            value = tokenizer.decode(list(question.answer)).strip()
            assert ids.shape == (1, 400)
            assert text.count(f" is {value}.") == 1
            assert text.index(f" is {value}.") / 400 == pytest.approx(depth, abs=0.2)


def test_the_same_seed_asks_the_same_and_another_another() -> None:
    tokenizer = byte_tokenizer()
    haystack = torch.tensor(tokenizer(TEXT)["input_ids"])
    rows = [needle_questions(tokenizer, haystack, 300, 0.5, 2, seed, NeedleFormat()) for seed in (0, 0, 1)]
    first, again, other = ([tuple(q.inputs["input_ids"][0].tolist()) for q in row] for row in rows)
    assert first == again != other


def test_a_text_too_short_for_the_length_is_told() -> None:
    with pytest.raises(MeasureError, match="give more text"):
        needle_grid(Reader().eval(), byte_tokenizer(), "short", [300])
    with pytest.raises(MeasureError, match="another length"):
        needle_grid(Reader().eval(), byte_tokenizer(), TEXT, [20])
