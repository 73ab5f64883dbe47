"""The vocabulary is told by its two ends; what keeps its rows from going has a reason; tokens with names are found."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from torch.nn.utils import parametrize

from inference_pio.anatomy.vocabulary import Vocabulary, named_tokens, vocabulary_of
from tests import tiny


@pytest.mark.parametrize(("name", "size", "tied"), [("llama", 131, False), ("qwen3", 128, True), ("gpt2", 128, True)])
def test_it_is_told_by_its_ends(name: str, size: int, tied: bool) -> None:
    model = tiny.build(name)
    found = vocabulary_of(model)
    assert isinstance(found, Vocabulary)
    assert (found.size, found.tied) == (size, tied)
    assert model.get_submodule(found.embedding) is model.get_input_embeddings()  # type: ignore[operator]
    assert model.get_submodule(found.head) is model.get_output_embeddings()  # type: ignore[operator]


def test_what_has_none_is_none() -> None:
    assert vocabulary_of(tiny.build("plain")) is None


def _another_reads_it(model: Any) -> None:
    model.model.layers[0].other = nn.Linear(64, 131, bias=False)
    model.model.layers[0].other.weight = model.lm_head.weight


def _parametrized(model: Any) -> None:
    parametrize.register_parametrization(model.lm_head, "weight", nn.Identity())


def _overridden(model: Any) -> None:
    model.lm_head.forward = lambda x: x


def _longer(model: Any) -> None:
    model.lm_head = nn.Linear(64, 140)


def _limited(model: Any) -> None:
    model.model.embed_tokens.max_norm = 1.0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_another_reads_it, "a Linear shares its weight"),
        (_parametrized, "no plain Linear"),
        (_overridden, "is overridden"),
        (_longer, "knows 131 tokens and its head 140"),
        (_limited, "none of torch's own"),
    ],
)
def test_what_keeps_its_rows_has_a_reason(change: Any, told: str) -> None:
    model = tiny.build("llama")
    change(model)
    found = vocabulary_of(model)
    assert isinstance(found, tuple)
    assert told in found[1]


def test_named_tokens_are_those_of_all_configurations() -> None:
    model: Any = tiny.build("qwen3_vl")
    model.generation_config.eos_token_id = [7, 9]
    assert {0, 7, 9, 123, 124, 125, 126} <= named_tokens(model)
