from __future__ import annotations

import pytest
import torch
from torch import nn

from inference_pio.errors import InvalidSetting
from inference_pio.undo.users import Users


def unused(users: Users) -> list[list[torch.Tensor]]:
    return [found.tensors for found in users.take_unused()]


def test_a_tied_parameter_is_unused_only_when_its_last_place_is_gone() -> None:
    model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    model[1].weight = model[0].weight
    users = Users(model)
    users.leave(model[0])
    assert unused(users) == []
    users.leave(model[1])
    assert len(unused(users)) == 1


def test_a_module_under_two_parents_is_in_use_until_both_let_go() -> None:
    shared = nn.Linear(2, 2, bias=False)
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared)})
    users = Users(model)
    users.leave(shared)
    assert unused(users) == []
    assert users.knows(shared)
    users.leave(model["b"])
    assert [len(tensors) for tensors in unused(users)] == [1]
    assert not users.knows(shared)


def test_views_of_one_storage_fall_out_of_use_together() -> None:
    whole = torch.zeros(4, 2)
    model = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(2)])
    model[0].weight, model[1].weight = nn.Parameter(whole[:2]), nn.Parameter(whole[2:])
    users = Users(model)
    assert users.sharing(model[0].weight) == {id(model[0].weight), id(model[1].weight)}
    users.leave(model[0].weight)
    assert unused(users) == []
    users.leave(model[1])
    assert [len(tensors) for tensors in unused(users)] == [2]


def test_what_leaves_and_comes_back_before_it_is_asked_for_is_in_use() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    users = Users(model)
    users.leave(model[0])
    users.enter(model[0])
    assert unused(users) == []
    assert users.tables_of(model[0].weight) == 0


def test_a_parked_tensor_cannot_come_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    users = Users(model)
    users.leave(model[0])
    for tensors in unused(users):
        users.parked(tensors)
    with pytest.raises(InvalidSetting, match="Put the new module together first"):
        users.enter(model[0])


def test_outsiders_are_asked_for_the_module_that_leaves_and_all_within() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2, bias=False)), nn.Linear(2, 2, bias=False))
    users = Users(model)
    users.others_hold = {id(model[0])}
    users.leave(model[0])
    users.leave(model[1])
    assert [found.needed for found in users.take_unused()] == [True, False]


def test_a_holder_above_the_module_that_leaves_does_not_matter() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2, bias=False)))
    users = Users(model)
    users.others_hold = {id(model[0])}
    users.leave(model[0][0])
    assert [found.needed for found in users.take_unused()] == [False]


def test_a_rehoused_tensor_uses_its_new_storage() -> None:
    model = nn.Linear(2, 2, bias=False)
    users = Users(model)
    merged = torch.zeros(4, 2)
    model.weight.data = merged[:2]
    users.rehoused(model.weight)
    assert unused(users) == []
    assert users.sharing(merged) == {id(model.weight)}
    users.leave(model.weight)
    assert len(unused(users)) == 1


def test_what_was_never_part_of_the_model_cannot_leave_it() -> None:
    model, foreign, tensor = nn.Linear(2, 2), nn.Linear(2, 2), torch.zeros(2)
    users = Users(model)
    users.leave(foreign)
    users.leave(tensor)
    users.leave("a word")
    users.enter(None)
    assert unused(users) == []
