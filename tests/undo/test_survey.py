from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from inference_pio.undo.journal import Journal
from inference_pio.undo.survey import Survey, named_tensors
from inference_pio.undo.vault import Vault
from tests import tiny


@pytest.mark.parametrize("name", tiny.TINY)
def test_a_model_that_nobody_else_knows_is_held_by_nobody_else(name: str) -> None:
    model = tiny.build(name)
    held = Survey(model, []).users.others_hold - {id(model)}
    assert [path for path, part in model.named_modules() if id(part) in held] == []
    assert [path for path, part in named_tensors(model) if id(part) in held and "inv_freq" not in path] == []


def test_a_variable_another_model_and_an_optimizer_are_other_holders() -> None:
    model = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(4)])
    variable = model[0]
    other = nn.Sequential(model[1])
    optimizer = torch.optim.SGD([model[2].weight])
    held = Survey(model, []).users.others_hold
    assert [id(part) in held for part in model] == [True, True, False, False]
    assert [id(part.weight) in held for part in model] == [False, False, True, False]
    assert variable is not other[0]
    assert len(optimizer.param_groups) == 1


def test_a_backward_pass_yet_to_come_holds_its_weights() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    loss = model[1](torch.ones(2, 2)).sum()
    held = Survey(model, []).users.others_hold
    assert [id(part.weight) in held for part in model] == [False, True]
    loss.backward()
    del loss
    held = Survey(model, []).users.others_hold
    assert id(model[1].weight) not in held


def test_the_journals_own_references_are_not_other_holders() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    journal = Journal(model, Vault("host"))
    with journal.step("one"):
        journal.replace(model[0], nn.Linear(2, 2, bias=False))
        journal.set(model[1], "note", 1)
        journal.hook(model[1], "forward", print)
        journal.set(model[1], "weight", nn.Parameter(torch.zeros(2, 2)))
        journal.rehouse({model[1].weight: torch.zeros(2, 2)})
    held = Survey(model, journal.frames).users.others_hold - {id(model)}
    assert held == set()


def test_names_tell_every_tensor_and_ties_twice() -> None:
    model = tiny.build("gpt2")
    names = [name for name, _ in named_tensors(model)]
    assert "lm_head.weight" in names
    assert "transformer.wte.weight" in names


def test_twenty_thousand_modules_are_surveyed_in_well_under_a_second() -> None:
    blocks = [nn.Sequential(*[nn.Linear(1, 1, bias=False) for _ in range(100)]) for _ in range(200)]
    model = nn.Sequential(*blocks)
    blocks.clear()
    seconds, held = [], []
    for _ in range(3):
        started = time.process_time()
        held.append(Survey(model, []).users.others_hold)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 2.0  # 0.5 s on an idle core
    assert [others - {id(model)} for others in held] == [set()] * 3


def test_a_step_that_parks_nothing_keeps_what_it_takes_out_in_place() -> None:
    model = nn.Linear(4, 4)
    journal = Journal(model)
    with journal.step("(base)", into=journal.base):
        journal.set(model, "weight", nn.Parameter(torch.zeros(4, 4)))
    assert journal.base.held_bytes == 64
    assert journal.base.parked_bytes == 0
