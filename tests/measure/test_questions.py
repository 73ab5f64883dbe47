from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_pio.errors import MeasureError
from inference_pio.measure.proportion import Proportion
from inference_pio.measure.questions import Question, accuracy, answers
from inference_pio.measure.timed_round import greedy_options
from tests import tiny


def said(name: str, model: Any, inputs: dict[str, torch.Tensor], count: int) -> tuple[int, ...]:
    with torch.no_grad():
        whole = model.generate(**inputs, **greedy_options(model, count))
    return tuple(whole[0, -count:].tolist())


@pytest.mark.parametrize("name", tiny.HF_NAMES)
@pytest.mark.parametrize("length", [1, 4])
def test_what_generate_says_is_answered_and_nothing_else(name: str, length: int) -> None:
    model = tiny.build(name)
    inputs = {key: value[:1] for key, value in tiny.inputs(name, model).items()}
    right = said(name, model, inputs, length)
    wrong = (*right[:-1], (right[-1] + 1) % 100)
    assert answers(model, [Question(inputs, right), Question(inputs, wrong)]) == [True, False]


def test_a_picture_may_be_asked_about() -> None:
    model = tiny.build("qwen3_vl")
    inputs = tiny.inputs("qwen3_vl", model, image=True)
    assert accuracy(model, [Question(inputs, said("qwen3_vl", model, inputs, 3))]) == Proportion(1, 1)


def test_progress_is_told_and_no_question_is_no_accuracy() -> None:
    model, told = tiny.build("llama"), []
    questions = [Question({"input_ids": torch.ones(1, 3, dtype=torch.int64)}, (1,))] * 2
    accuracy(model, questions, lambda _, share: told.append(share))
    assert told == [0.5, 1.0]
    with pytest.raises(MeasureError, match="a question at least"):
        accuracy(model, [])


@pytest.mark.parametrize("inputs", [{}, {"input_ids": torch.ones(2, 3)}, {"input_ids": [1]}])
def test_a_question_is_one_row_of_tokens(inputs: dict[str, Any]) -> None:
    with pytest.raises(MeasureError, match="input_ids"):
        Question(inputs, (1,))
    with pytest.raises(MeasureError, match="one token or more"):
        Question({"input_ids": torch.ones(1, 3)}, ())
