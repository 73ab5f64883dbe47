"""Needles in a haystack: one fact planted in a long text at some depth, asked for at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.errors import MeasureError
from inference_pio.measure.proportion import Proportion
from inference_pio.measure.questions import Question, accuracy

Progress = Callable[[str, float], None]
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
CITIES = ("Lisbon", "Oslo", "Quito", "Hanoi", "Cairo", "Turin", "Perth", "Lagos", "Minsk", "Osaka", "Dakar", "Lima")


@dataclass(frozen=True)
class NeedleFormat:
    """How a fact is written and asked for; `{key}` and `{value}` are filled in.

    The default suits a model of language; a model that was trained on lines of its own kind is asked in that kind.
    """

    fact: str = "\nThe secret number of {key} is {value}.\n"
    question: str = "\nThe secret number of {key} is"
    answer: str = " {value}"
    keys: Sequence[str] = CITIES
    values: Sequence[str] = tuple(str(number) for number in range(1009, 9999, 37))


@dataclass(frozen=True)
class NeedleGrid:
    """What was found, by length in tokens and depth (0 the start of the text, 1 its end)."""

    cells: Mapping[tuple[int, float], Proportion] = field(default_factory=dict)

    @property
    def total(self) -> Proportion:
        return sum(self.cells.values(), Proportion(0, 0))

    def at_length(self, length: int) -> Proportion:
        """All depths of one length together."""
        return sum((cell for (tokens, _), cell in self.cells.items() if tokens == length), Proportion(0, 0))

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {
                "length": length,
                "depth": depth,
                "share": cell.share,
                "count": cell.count,
                "interval": list(cell.interval),
            }
            for (length, depth), cell in self.cells.items()
        ]


def needle_grid(
    model: nn.Module, tokenizer: Any, text: str, lengths: Sequence[int], depths: Sequence[float] = DEPTHS, *,
    per_cell: int = 8, seed: int = 0, form: NeedleFormat | None = None, progress: Progress | None = None,
) -> NeedleGrid:  # fmt: skip
    """Plant and ask `per_cell` facts for every length and depth; `text` is what they are hidden in.

    The same arguments make the same questions, so that two models may be set side by side cell by cell. Raises
    MeasureError where the text is too short for a length.
    """
    haystack = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    grid: dict[tuple[int, float], Proportion] = {}
    cells = [(length, depth) for length in lengths for depth in depths]
    for number, (length, depth) in enumerate(cells):
        questions = needle_questions(tokenizer, haystack, length, depth, per_cell, seed, form or NeedleFormat())
        grid[length, depth] = accuracy(model, questions)
        if progress:
            progress("needles", (number + 1) / len(cells))
    return NeedleGrid(grid)


def needle_questions(
    tokenizer: Any, haystack: Tensor, length: int, depth: float, count: int, seed: int, form: NeedleFormat
) -> list[Question]:
    """`count` prompts of exactly `length` tokens, each with another fact, in another piece of the haystack."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + length * 1009 + round(depth * 1000))
    made = []
    for _ in range(count):
        key = form.keys[_draw(len(form.keys), generator)]
        value = form.values[_draw(len(form.values), generator)]
        fact, question, answer = (
            _ids(tokenizer, words.format(key=key, value=value)) for words in (form.fact, form.question, form.answer)
        )
        room = length - len(fact) - len(question)
        if room < 0 or room >= haystack.numel():
            raise MeasureError(
                f"a needle of {length} tokens needs {max(room, 0)} tokens of text around {len(fact) + len(question)} "
                f"of its own; the text has {haystack.numel()}: give more text, or another length"
            )
        start = _draw(haystack.numel() - room, generator)
        filler, at = haystack[start : start + room], round(depth * room)
        prompt = torch.cat([filler[:at], torch.tensor(fact), filler[at:], torch.tensor(question)])
        made.append(Question({"input_ids": prompt[None]}, tuple(answer)))
    return made


def _ids(tokenizer: Any, words: str) -> list[int]:
    ids: list[int] = tokenizer(words, add_special_tokens=False)["input_ids"]
    return ids


def _draw(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))
