"""Retrieval documents: each question has one answer, given before, and nothing else of a line is trained on."""

from __future__ import annotations

import numpy as np
import pytest
from scripts.reference.evaluate import needle
from scripts.reference.retrieval import ECHO, LINE_TOKENS, RECALL, VALUE_AT, Lines, document, echo
from tokenizers import Tokenizer


@pytest.mark.parametrize("text_share", [0.0, 0.5, 0.97])
@pytest.mark.parametrize("seed", range(3))
def test_every_recalled_value_was_defined_before(
    tokenizer: Tokenizer, tokens: np.ndarray, text_share: float, seed: int
) -> None:
    lines = Lines.of(tokenizer)
    row, kinds = document(1024, lines, tokens, np.random.default_rng(seed), text_share)
    assert row.shape == kinds.shape == (1024,)
    asked = np.flatnonzero(kinds == RECALL)
    assert len(asked) > 0
    for place in asked:
        question = row[place - VALUE_AT : place]
        windows = np.lib.stride_tricks.sliding_window_view(row[: place - VALUE_AT], LINE_TOKENS)
        defined = windows[(windows[:, :VALUE_AT] == question).all(axis=1)]
        assert len(defined) > 0
        assert set(defined[:, VALUE_AT].tolist()) == {int(row[place])}


def test_an_echo_says_again_what_it_said_one_round_before(tokenizer: Tokenizer) -> None:
    row, kinds = echo(300, Lines.of(tokenizer), np.random.default_rng(1))
    period = int(np.flatnonzero(kinds == ECHO)[0]) - 1
    assert np.array_equal(row[period:], row[:-period])


def test_the_same_seed_writes_the_same_document(tokenizer: Tokenizer, tokens: np.ndarray) -> None:
    lines = Lines.of(tokenizer)
    first, second = (document(512, lines, tokens, np.random.default_rng(7), 0.5) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_a_needle_lies_at_its_depth_and_is_asked_for_at_the_end(
    tokenizer: Tokenizer, tokens: np.ndarray, depth: float, others: bool
) -> None:
    lines = Lines.of(tokenizer)
    one = needle(1000, depth, lines, tokens, np.random.default_rng(0), others)
    assert one.prompt.shape == (1000,)
    question, body = one.prompt[-VALUE_AT:], one.prompt[:-VALUE_AT]
    windows = np.lib.stride_tricks.sliding_window_view(body, VALUE_AT + 1)
    (at,) = np.flatnonzero((windows[:, :VALUE_AT] == question).all(axis=1))
    assert windows[at, VALUE_AT] == one.answer
    assert at == pytest.approx(depth * len(body), abs=20)
