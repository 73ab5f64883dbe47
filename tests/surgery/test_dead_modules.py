"""Chains step over what gives back its input: not while it is watched, and never dropout in training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inference_pio.errors import NoEffect
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.surgery.help import operate, skips


class Tail(nn.Module):
    """A module that calls its parts by name, and one of a chain by its index."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.Dropout(0.5), nn.Linear(4, 4))
        self.drop = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.drop(self.chain[3](self.chain(x)))
        return out


def test_bits_are_the_same_and_dead_modules_are_not_called() -> None:
    model = Tail().eval()
    x = torch.randn(3, 4)
    wanted = model(x)
    receipt = operate(model, "dead_modules")
    assert [site.path for site in receipt.acted] == ["chain.1", "chain.2"]
    assert "calls it by its name" in str(skips(receipt)["drop"])
    assert len(model.chain) == 4
    model.chain[1].forward = None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        model(x)  # somebody's own forward is called
    del model.chain[1].forward
    assert torch.equal(model(x), wanted)


def test_what_is_watched_or_trained_is_called() -> None:
    model = Tail().eval()
    operate(model, "dead_modules")
    seen: list[int] = []
    for place in (1, 2):
        model.chain[place].register_forward_hook(lambda *_, place=place: seen.append(place))
    model(torch.randn(2, 4))
    assert seen == [1, 2]
    other = Tail().eval()
    operate(other, "dead_modules")
    other.train()
    given = torch.randn(64, 4)
    assert not torch.equal(other.chain(given), other.chain(given))


def test_a_model_without_chains_is_told_so() -> None:
    with pytest.raises(NoEffect, match="GPT2Attention calls it by its name"):
        operate(tiny.build("gpt2"), "dead_modules")


def test_undo_leaves_the_chain_as_it_was() -> None:
    from inference_pio.manager import ModularOptimizationManager

    model = Tail().eval()
    before = fingerprint(model)
    operate(model, "dead_modules")
    assert before.differences(fingerprint(model)) != []
    ModularOptimizationManager().remove_optimizations(model)
    assert before.differences(fingerprint(model)) == []


def test_a_model_that_is_the_chain_is_told_so_by_the_plan() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.Dropout()).eval()
    with pytest.raises(NoEffect, match="its chain is the model itself"):
        operate(model, "dead_modules")
