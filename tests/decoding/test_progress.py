"""Rows grow until they end, as in the library's loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.generation import EosTokenCriteria, MaxLengthCriteria, StoppingCriteria

from inference_pio.decoding.progress import Progress
from inference_pio.errors import InvalidSetting

PROMPT = torch.tensor([[4, 5], [6, 7]])


class Ear:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def put(self, tokens: torch.Tensor) -> None:
        self.heard.append(tokens.tolist())

    def end(self) -> None:
        self.heard.append("end")


def test_a_row_that_ended_is_padded_and_the_others_go_on() -> None:
    ear = Ear()
    progress = Progress(PROMPT, [MaxLengthCriteria(6), EosTokenCriteria(9)], 0, ear)
    said = [progress.accept(torch.tensor(tokens)) for tokens in ([9, 8], [3, 3], [3, 9])]
    progress.end()
    assert said == [False, False, True]
    assert progress.tokens.tolist() == [[4, 5, 9, 0, 0], [6, 7, 8, 3, 9]]
    assert ear.heard == [[9, 8], [0, 3], [0, 9], "end"]
    assert progress.new == 3


def test_the_length_ends_all_rows() -> None:
    progress = Progress(PROMPT, [MaxLengthCriteria(4)], None)
    assert not progress.accept(torch.tensor([1, 1]))
    assert progress.accept(torch.tensor([1, 1]))


def test_rows_grow_past_every_room() -> None:
    progress = Progress(PROMPT, [MaxLengthCriteria(1000)], None)
    while not progress.accept(torch.tensor([progress.length, -progress.length])):
        pass
    assert progress.tokens[0].tolist() == [4, 5, *range(2, 1000)]


def test_a_criterion_of_the_users_is_asked_where_the_model_is() -> None:
    class Own(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            return input_ids[:, -1] == 3

    progress = Progress(PROMPT, [MaxLengthCriteria(9), Own()], None)
    assert not progress.hosted
    assert not progress.accept(torch.tensor([3, 1]))
    assert progress.accept(torch.tensor([5, 3]))
    assert progress.tokens.tolist() == [[4, 5, 3, 5], [6, 7, 1, 3]]  # no padding where nothing ends by a token
    assert Progress(PROMPT, [MaxLengthCriteria(9)], None).hosted


def test_rows_that_can_end_need_padding() -> None:
    with pytest.raises(InvalidSetting, match="pad_token_id"):
        Progress(PROMPT, [EosTokenCriteria(9)], None)
