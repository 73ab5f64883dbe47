from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_pio.anatomy.decoder_stack import decoder_stack
from inference_pio.anatomy.last_states import ask_for_last_states, last_states
from inference_pio.anatomy.prompt_in_pieces import lead_prompts_in_pieces
from inference_pio.undo.journal import Journal
from tests import tiny
from tests.cache.walks import prompt


def asking(name: str, size: int = 5) -> tuple[Any, list[tuple[int, ...]]]:
    """A model in pieces, and the shapes of the hidden states that its stack gives back."""
    model: Any = tiny.build(name)
    found = decoder_stack(model)
    assert not isinstance(found, str)
    journal = Journal(model)
    with journal.step("last"):
        lead_prompts_in_pieces(journal, found[1], size)
        ask_for_last_states(journal, model)
    shapes: list[tuple[int, ...]] = []
    found[1].register_forward_hook(lambda module, given, out: shapes.append(tuple(out.last_hidden_state.shape)))
    return model, shapes


@pytest.mark.parametrize("name", tiny.HF_NAMES)
@pytest.mark.parametrize("kept", [1, 4, 7, 12, 40])
@torch.no_grad()
def test_only_as_many_hidden_states_are_kept_as_logits_are_made_of(name: str, kept: int) -> None:
    given = prompt(1, 12)
    wanted = tiny.build(name)(**given, logits_to_keep=kept).logits
    model, shapes = asking(name)
    torch.testing.assert_close(model(**given, logits_to_keep=kept).logits, wanted, rtol=1e-4, atol=5e-6)
    assert shapes == [(1, min(kept, 12), tiny.HIDDEN)]


@pytest.mark.parametrize(
    "options",
    [{}, {"logits_to_keep": 0}, {"logits_to_keep": torch.tensor([3, 7])}, {"labels": prompt(1, 12)["input_ids"]}],
)
@torch.no_grad()
def test_whoever_asks_for_more_gets_all(options: dict[str, Any]) -> None:
    given = prompt(1, 12)
    wanted = tiny.build("qwen3")(**given, **options)
    model, shapes = asking("qwen3")
    torch.testing.assert_close(model(**given, **options).logits, wanted.logits, rtol=1e-4, atol=5e-6)
    assert shapes == [(1, 12, tiny.HIDDEN)]


@torch.no_grad()
def test_generate_keeps_one_and_an_error_leaves_nothing_said() -> None:
    model, shapes = asking("qwen3")
    model.generate(**prompt(1, 12), max_new_tokens=2, do_sample=False)
    assert shapes[0] == (1, 1, tiny.HIDDEN)
    with pytest.raises(ValueError, match="exactly one of input_ids"):
        model(logits_to_keep=1)
    assert last_states() is None


def test_a_forward_that_makes_no_logits_is_not_touched() -> None:
    model = tiny.build("plain")
    journal = Journal(model)
    with journal.step("last"):
        ask_for_last_states(journal, model)
    assert "forward" not in vars(model)
