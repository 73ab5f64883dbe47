"""Questions whose answer is known token by token: needles, captions and their like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.errors import MeasureError
from inference_pio.measure.proportion import Proportion
from inference_pio.measure.target import check_measurable, input_device, supported

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Question:
    """Keyword arguments of a forward, `input_ids` [1, length] among them, and the tokens that should follow."""

    inputs: Mapping[str, Any]
    answer: tuple[int, ...]

    def __post_init__(self) -> None:
        ids = self.inputs.get("input_ids")
        if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.shape[0] != 1 or not self.answer:
            raise MeasureError("a question needs input_ids [1, length] and an answer of one token or more")


def answers(model: nn.Module, questions: Sequence[Question], progress: Progress | None = None) -> list[bool]:
    """For each question, whether greedy decoding gives exactly its answer.

    One forward a question, over the question and its answer: greedy decoding gives the answer if and only if each of
    its tokens is the likeliest after all before it.
    """
    check_measurable(model)
    found = []
    for number, question in enumerate(questions):
        found.append(_answered(model, question))
        if progress:
            progress("quality", (number + 1) / len(questions))
    return found


def accuracy(model: nn.Module, questions: Sequence[Question], progress: Progress | None = None) -> Proportion:
    """The share of questions that greedy decoding answers exactly.

    Raises MeasureError where there are none.
    """
    if not questions:
        raise MeasureError("accuracy needs a question at least")
    return Proportion(sum(answers(model, questions, progress)), len(questions))


def _answered(model: nn.Module, question: Question) -> bool:
    device, answer = input_device(model), torch.tensor(question.answer)
    given = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in question.inputs.items()}
    ids = given["input_ids"]
    given["input_ids"] = torch.cat([ids, answer[None, :-1].to(device)], 1)
    for name, filler in (("attention_mask", 1), ("mm_token_type_ids", 0), ("token_type_ids", 0)):
        if isinstance(like := given.get(name), Tensor):
            given[name] = torch.cat([like, torch.full_like(like[:, :1], filler).expand(-1, len(answer) - 1)], 1)
    with torch.no_grad():
        logits = model(**{**supported(model, use_cache=False, logits_to_keep=len(answer)), **given}).logits
    return torch.equal(logits[0, -len(answer) :].argmax(-1).cpu(), answer)
