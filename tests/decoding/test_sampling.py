"""Choosing tokens: the library's processors, and its chances."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest
import torch
from transformers.generation import logits_process as library

from inference_pio.decoding.sampling import draw, recipe_of
from inference_pio.decoding.slots import Slots

CPU = torch.device("cpu")
ENDS = torch.tensor([3, 7])
HELD = torch.tensor([[4, 5, 5, 9], [8, 1, 0, 7]])
PROCESSORS: list[Any] = [
    library.TemperatureLogitsWarper(0.7),
    library.TopKLogitsWarper(5),
    library.TopPLogitsWarper(0.8),
    library.MinPLogitsWarper(0.1),
    library.TypicalLogitsWarper(0.9),
    library.EpsilonLogitsWarper(0.01),
    library.EtaLogitsWarper(0.01, device="cpu"),
    library.LogitNormalization(),
    library.InfNanRemoveLogitsProcessor(),
    library.RepetitionPenaltyLogitsProcessor(1.7),
    library.RepetitionPenaltyLogitsProcessor(0.6, prompt_ignore_length=2),
    library.MinNewTokensLengthLogitsProcessor(2, 3, ENDS),
    library.MinNewTokensLengthLogitsProcessor(2, 2, ENDS),
    library.MinLengthLogitsProcessor(5, ENDS),
    library.MinLengthLogitsProcessor(4, ENDS),
]
if "Tensor" in str(signature(library.RepetitionPenaltyLogitsProcessor).parameters["prompt_ignore_length"]):
    PROCESSORS.append(library.RepetitionPenaltyLogitsProcessor(1.7, prompt_ignore_length=torch.tensor([1, 3])))


def logits() -> torch.Tensor:
    return torch.randn(2, 20, generator=torch.Generator().manual_seed(3)) * 3


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda one: type(one).__name__)
def test_every_stage_is_what_the_library_does(processor: Any) -> None:
    recipe = recipe_of([processor], sampled=True, prompt=2, device=CPU)
    assert not isinstance(recipe, str)
    slots = Slots(2, 1, CPU)
    slots.begin(torch.zeros(2), torch.zeros(2), length=4, made=2)
    if recipe.marks:
        slots.mark(HELD, 20, recipe.unmarked)
    (stage,) = recipe.stages
    assert torch.equal(stage(logits(), slots), processor(HELD, logits()))


def test_stages_keep_their_order() -> None:
    given = [library.TopKLogitsWarper(2), library.RepetitionPenaltyLogitsProcessor(50.0)]
    slots = Slots(1, 1, CPU)
    slots.mark(torch.tensor([[0]]), 3)
    scores = torch.tensor([[9.0, 8.0, 7.0]])
    chosen = [recipe_of(order, sampled=False, prompt=1, device=CPU) for order in (given, given[::-1])]
    assert [one.choose(scores, slots).item() for one in chosen if not isinstance(one, str)] == [1, 1]
    (first, second) = [recipe_of(order, sampled=False, prompt=1, device=CPU) for order in (given, given[::-1])]
    assert not isinstance(first, str)
    assert not isinstance(second, str)
    found = []
    for recipe in (first, second):
        kept = scores
        for stage in recipe.stages:
            kept = stage(kept, slots)
        found.append(kept.isinf().tolist())
    assert found == [[[False, False, True]], [[True, False, False]]]


def test_recipes_that_choose_alike_share_a_key_and_others_do_not() -> None:
    def key(*processors: Any, sampled: bool = True, prompt: int = 4) -> str:
        recipe = recipe_of(processors, sampled=sampled, prompt=prompt, device=CPU)
        assert not isinstance(recipe, str)
        return recipe.key

    assert key(library.TopKLogitsWarper(5)) == key(library.TopKLogitsWarper(5), prompt=9)
    assert key(library.TopKLogitsWarper(5)) != key(library.TopKLogitsWarper(6))
    assert key() != key(sampled=False)
    assert key(library.MinLengthLogitsProcessor(9, ENDS)) != key(library.MinLengthLogitsProcessor(9, ENDS), prompt=5)
    assert key(library.MinNewTokensLengthLogitsProcessor(4, 3, ENDS)) == key(
        library.MinNewTokensLengthLogitsProcessor(9, 3, ENDS), prompt=9
    )


def test_what_runs_on_the_host_is_named() -> None:
    class Own(library.TopKLogitsWarper):
        pass

    assert recipe_of([library.NoRepeatNGramLogitsProcessor(2)], sampled=False, prompt=1, device=CPU) == (
        "NoRepeatNGramLogitsProcessor runs on the host"
    )
    assert recipe_of([Own(3)], sampled=False, prompt=1, device=CPU) == "Own runs on the host"


def test_a_token_is_drawn_as_torch_draws_one() -> None:
    scores = logits()
    for seed in range(20):
        torch.manual_seed(seed)
        wanted = torch.multinomial(torch.softmax(scores, -1), 1).squeeze(1)
        torch.manual_seed(seed)
        assert torch.equal(draw(scores, sampled=True), wanted)
    assert torch.equal(draw(scores, sampled=False), scores.argmax(-1))


def test_draws_follow_the_shares_that_processors_leave() -> None:
    """Chi-square over 20,000 draws; with 11 degrees of freedom 31.3 is passed by chance once in a thousand."""
    draws, kept = 20_000, 12
    given = [library.TemperatureLogitsWarper(1.3), library.TopKLogitsWarper(kept)]
    recipe = recipe_of(given, sampled=True, prompt=1, device=CPU)
    assert not isinstance(recipe, str)
    scores = logits()[:1]
    wanted = scores
    for processor in given:
        wanted = processor(None, wanted)
    shares = torch.softmax(wanted, -1)[0]
    torch.manual_seed(0)
    found = recipe.choose(scores.expand(draws, -1), Slots(draws, 1, CPU)).bincount(minlength=20)
    assert (found[shares == 0] == 0).all()
    expected = draws * shares[shares > 0]
    assert len(expected) == kept
    assert ((found[shares > 0] - expected).square() / expected).sum() < 31.3
