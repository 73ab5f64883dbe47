from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_pio.anatomy.call_guards import put_around
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
    shapes: list[tuple[int, ...]] = []

    def seeing(self: Any, inner: Any, given: Any, named: Any) -> Any:
        out = inner(self, *given, **named)
        shapes.append(tuple(out.last_hidden_state.shape))
        return out

    with journal.step("last"):
        lead_prompts_in_pieces(journal, found[1], size)
        put_around(journal, found[1], seeing)  # a hook would be shown all
        ask_for_last_states(journal, model)
    return model, shapes


def watch_by_a_hook(module: Any, note: Any) -> None:
    module.register_forward_hook(lambda _, given, out: note(out))


def watch_by_a_forward(module: Any, note: Any) -> None:
    before = module.forward

    def forward(*given: Any, **named: Any) -> Any:
        out = before(*given, **named)
        note(out)
        return out

    module.forward = forward


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


@pytest.mark.parametrize("name", tiny.HF_NAMES)
@pytest.mark.parametrize("watch", [watch_by_a_hook, watch_by_a_forward])
@pytest.mark.parametrize("whose", ["stack", "base"])
@torch.no_grad()
def test_whoever_watches_sees_all(name: str, watch: Any, whose: str) -> None:
    given = prompt(1, 12)
    wanted = tiny.build(name)(**given, logits_to_keep=1).logits
    model, _ = asking(name)
    found = decoder_stack(model)
    assert not isinstance(found, str)
    seen: list[tuple[int, ...]] = []
    watch(found[1] if whose == "stack" else model.base_model, lambda out: seen.append(out.last_hidden_state.shape))
    torch.testing.assert_close(model(**given, logits_to_keep=1).logits, wanted, rtol=1e-4, atol=5e-6)
    assert seen == [(1, 12, tiny.HIDDEN)]


@torch.no_grad()
def test_another_model_that_is_called_on_the_way_gives_all() -> None:
    (model, _), (other, shapes) = asking("qwen3"), asking("llama")
    model.lm_head.register_forward_hook(lambda *_: other.model(**prompt(1, 12)))
    model(**prompt(1, 12), logits_to_keep=1)
    assert shapes == [(1, 12, tiny.HIDDEN)]


@torch.no_grad()
def test_generate_keeps_one_and_an_error_leaves_nothing_said() -> None:
    model, shapes = asking("qwen3")
    model.generate(**prompt(1, 12), max_new_tokens=2, do_sample=False)
    assert shapes[0] == (1, 1, tiny.HIDDEN)
    with pytest.raises(ValueError, match="exactly one of input_ids"):
        model(logits_to_keep=1)
    assert last_states(model.model) is None


def test_a_forward_that_makes_no_logits_is_not_touched() -> None:
    model = tiny.build("plain")
    journal = Journal(model)
    with journal.step("last"):
        ask_for_last_states(journal, model)
    assert "forward" not in vars(model)
