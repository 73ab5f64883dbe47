"""A faster forward serves plain inference alone; who watches calls, or has a forward of one's own, is told."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

from inference_pio.anatomy.call_guards import (
    computes_by,
    is_foreign,
    is_watched,
    library_forward,
    put_around,
    put_forward,
    serves,
    why_not_replaced,
)
from inference_pio.undo.journal import Journal


def doubled(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return 2 * library_forward(self, x)  # type: ignore[no-any-return]


def test_training_gradients_and_tracing_are_not_plain_inference() -> None:
    layer, x = nn.Linear(2, 2).eval(), torch.ones(1, 2)
    assert not serves(layer, x)
    with torch.no_grad():
        assert serves(layer, x)
        assert not serves(layer.train(), x)
    layer.eval().requires_grad_(False)
    assert serves(layer, x)
    assert not serves(layer, x.clone().requires_grad_())
    seen = []

    def asked(x: torch.Tensor) -> torch.Tensor:
        seen.append(serves(layer, x))
        return x + 1

    torch.compile(asked, backend="eager", fullgraph=False)(x)
    assert seen == [False]


def test_every_kind_of_hook_watches() -> None:
    layer = nn.Linear(2, 2)
    for register in (layer.register_forward_hook, layer.register_forward_pre_hook, layer.register_full_backward_hook):
        handle = register(lambda *given: None)  # type: ignore[operator]
        assert is_watched(layer)
        handle.remove()
        assert not is_watched(layer)
    handle = register_module_forward_hook(lambda *given: None)
    assert is_watched(layer)
    handle.remove()
    assert not is_watched(layer)


def test_a_forward_follows_a_copy_and_comes_off_again() -> None:
    model = nn.Sequential(nn.Linear(2, 2)).eval()
    layer, x = model[0], torch.ones(1, 2)
    before = layer(x)
    journal = Journal(model)
    with journal.step("double") as frame:
        put_forward(journal, layer, doubled)
    assert computes_by(layer, doubled)
    assert torch.equal(layer(x), 2 * before)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied[0].weight.zero_()
        copied[0].bias.zero_()
    assert torch.equal(copied(x), torch.zeros(1, 2))
    assert torch.equal(layer(x), 2 * before)
    frame.unwind(0)
    assert not computes_by(layer, doubled)
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("what", ["forward", "parametrization"])
def test_what_is_not_ours_to_replace_is_told(what: str) -> None:
    layer = nn.Linear(2, 2)
    assert why_not_replaced(layer) is None
    if what == "forward":
        layer.forward = layer.forward  # type: ignore[method-assign]
        assert why_not_replaced(layer) == "its forward is overridden by somebody else"
        assert not computes_by(layer, doubled)
    else:
        parametrize.register_parametrization(layer, "weight", nn.Identity())
        assert why_not_replaced(layer) == "its weights are parametrized"


def test_a_forward_of_the_users_is_seen_inside_one_of_ours() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    journal = Journal(model)

    def through(module: nn.Module, inner: Any, given: Any, named: Any) -> Any:
        return inner(module, *given, **named)

    with journal.step("ours alone"):
        put_around(journal, model[0], through)
        put_around(journal, model[0], through)
    assert not is_foreign(model[0].forward)

    def mine(x: torch.Tensor) -> torch.Tensor:
        return x

    model.forward = mine  # type: ignore[method-assign]
    with journal.step("around mine"):
        put_around(journal, model, through)
        put_around(journal, model, through)
    assert is_foreign(model.forward)
    assert is_foreign(copy.deepcopy(model).forward)
    x = torch.ones(1, 2)
    assert model(x) is x


def test_a_copy_holds_nothing_of_the_model_that_it_was_made_of() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    journal = Journal(model)
    with journal.step("twice"):
        for _ in range(2):
            put_around(journal, model, lambda module, inner, given, named: inner(module, *given, **named))
    twin, gone = copy.deepcopy(model), weakref.ref(model)
    del model, journal
    gc.collect()
    assert gone() is None
    assert twin(torch.ones(1, 2)).shape == (1, 2)


def test_a_compiled_forward_of_the_class_is_nobody_elses() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.forward = torch.compile(model.forward, backend="eager")  # type: ignore[method-assign]
    assert not is_foreign(model.forward)
    model.forward = torch.compile(lambda x: x, backend="eager")  # type: ignore[method-assign]
    assert is_foreign(model.forward)
