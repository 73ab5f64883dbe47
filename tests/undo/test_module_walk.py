"""The quick walk lists what `named_modules` lists, in its order, shared modules once."""

from __future__ import annotations

import pytest
from torch import nn

from inference_pio.undo.module_walk import modules_of, named_modules_of
from tests import tiny


@pytest.mark.parametrize("name", list(tiny.TINY))
def test_it_is_the_walk_of_the_library(name: str) -> None:
    model = tiny.build(name)
    assert named_modules_of(model) == list(model.named_modules())
    assert modules_of(model) == list(model.modules())
    assert named_modules_of(model, all_names=True) == list(model.named_modules(remove_duplicate=False))


def test_what_stands_at_two_places_or_nowhere_is_listed_as_the_library_lists_it() -> None:
    shared = nn.Sequential(nn.ReLU())
    model = nn.Sequential(shared, nn.Sequential(shared, nn.Linear(1, 1)), nn.Tanh())
    model.add_module("none", None)
    assert named_modules_of(model, all_names=True) == list(model.named_modules(remove_duplicate=False))
    shared.add_module("round", shared)
    assert named_modules_of(model) == list(model.named_modules())
