from __future__ import annotations

import pytest
import torch
from torch import nn

from inference_pio.errors import MeasureError
from inference_pio.measure.logits import check_tokens, window_logits
from inference_pio.measure.text import sampled_tokens
from tests.tiny import HF_NAMES, build

TOKENS = sampled_tokens(120, 3 * 11).view(3, 11)


class Says(nn.Module):
    """Answers with what it was given."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, input_ids: torch.Tensor) -> object:
        return self.answer


@pytest.mark.parametrize("name", HF_NAMES)
def test_every_family_answers_in_its_own_dtype_for_all_tokens_that_have_a_next_one(name):
    model = build(name, torch.bfloat16)
    logits = window_logits(model, TOKENS, 1)
    with torch.no_grad():
        assert torch.equal(logits, model(input_ids=TOKENS[1:2]).logits[0, :10])
    assert logits.dtype == torch.bfloat16


def test_bare_tensors_and_tuples_are_logits_too():
    answer = torch.randn(1, 11, 120)
    assert torch.equal(window_logits(Says(answer), TOKENS, 0), answer[0, :-1])
    assert torch.equal(window_logits(Says((answer, None)), TOKENS, 0), answer[0, :-1])


@pytest.mark.parametrize(
    ("answer", "shown"),
    [(torch.zeros(1, 7), r"\[1, 7\]"), ({"hidden": 1}, "dict"), (torch.zeros(1, 1, 7), r"\[1, 1, 7\]")],
)
def test_what_is_no_logits_is_told(answer, shown):
    with pytest.raises(MeasureError, match=rf"Says gave no logits \[1, 11, vocabulary\].*{shown}"):
        window_logits(Says(answer), TOKENS, 0)


def test_tokens_that_the_model_cannot_predict_are_told():
    with pytest.raises(MeasureError, match=rf"go up to {int(TOKENS.max())} and Says predicts 50 different ones"):
        window_logits(Says(torch.zeros(1, 11, 50)), TOKENS, 0)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_nan_and_infinity_are_told_with_their_place(value):
    answer = torch.zeros(1, 11, 120)
    answer[0, 4, 2] = answer[0, 9, 0] = float(value)
    place = rf"window 2, position 4 \(token {int(TOKENS[2, 4])}\), the first of 2 such"
    with pytest.raises(MeasureError, match=rf"Says gives {value} in its logits at {place}"):
        window_logits(Says(answer), TOKENS, 2)


def test_a_real_model_with_a_nan_weight_is_told():
    model = build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(MeasureError, match="LlamaForCausalLM gives nan in its logits at window 0, position 0"):
        window_logits(model, TOKENS, 0)


def test_impossible_tokens_are_an_answer_but_nothing_else_is_not():
    answer = torch.zeros(1, 11, 120)
    answer[..., 3] = float("-inf")
    assert window_logits(Says(answer), TOKENS, 0)[0, 3] == float("-inf")
    answer[0, 5] = float("-inf")
    with pytest.raises(MeasureError, match="gives -inf in its logits at window 0, position 5"):
        window_logits(Says(answer), TOKENS, 0)


@pytest.mark.parametrize(
    "tokens", [torch.zeros(8, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 8)]
)
def test_what_is_no_windows_of_tokens_is_refused(tokens):
    with pytest.raises(MeasureError, match=r"whole numbers \[windows, window\]"):
        check_tokens(tokens)
