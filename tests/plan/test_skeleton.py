"""The skeleton has the shapes and ties of a model and none of its bytes."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn

from inference_pio.errors import InvalidModel
from inference_pio.plan.skeleton import skeleton_of, tensor_bytes, twin_of
from inference_pio.undo.fingerprint import fingerprint
from inference_pio.undo.tensors import stand_in_for
from tests import tiny


@pytest.mark.parametrize("name", list(tiny.TINY))
def test_a_skeleton_has_every_name_shape_and_tie_and_leaves_the_model_alone(name: str) -> None:
    model = tiny.build(name)
    before = fingerprint(model)
    bones = skeleton_of(model)
    assert before.differences(fingerprint(model)) == []
    theirs, ours = (
        dict(bones.named_parameters(remove_duplicate=False)),
        dict(model.named_parameters(remove_duplicate=False)),
    )
    assert {key: (value.shape, value.stride(), value.dtype) for key, value in theirs.items()} == {
        key: (value.shape, value.stride(), value.dtype) for key, value in ours.items()
    }
    assert all(value.is_meta for value in [*theirs.values(), *bones.buffers()])
    assert len(list(bones.parameters())) == len(list(model.parameters()))
    assert tensor_bytes(bones) == tensor_bytes(model)


@pytest.mark.parametrize("name", list(tiny.TINY))
def test_a_twin_is_what_a_deep_copy_is_and_shares_nothing_that_changes(name: str) -> None:
    bones = skeleton_of(tiny.build(name))
    twin, deep = twin_of(bones), copy.deepcopy(bones)
    assert repr(twin) == repr(deep)
    for one, other, first in zip(twin.modules(), deep.modules(), bones.modules(), strict=True):
        assert type(one) is type(other)
        assert [(key, type(value)) for key, value in vars(one).items()] == [
            (key, type(value)) for key, value in vars(other).items()
        ]
        for key, value in vars(one).items():
            if isinstance(value, dict | list | set | nn.Module):
                assert value is not vars(first)[key]
    for ours, theirs in zip(twin.parameters(), deep.parameters(), strict=True):
        assert (ours.shape, ours.dtype, ours.requires_grad) == (theirs.shape, theirs.dtype, theirs.requires_grad)
    ties = [[id(tensor) for _, tensor in each.named_parameters(remove_duplicate=False)] for each in (twin, deep)]
    assert [ties[0].index(one) for one in ties[0]] == [ties[1].index(one) for one in ties[1]]


def test_a_twin_follows_circles_and_a_copy_that_a_class_makes_itself() -> None:
    class Own(nn.Module):
        def __deepcopy__(self, memo: object) -> Own:
            made = Own()
            made.told = "by itself"
            return made

    model = nn.Sequential(nn.Linear(2, 2), Own())
    shared: list[int] = []
    model[0].whole, model[0].call, model[0].one, model[1].other = [model], model.forward, shared, shared
    model[0].remembered = torch.ones(3)  # a plain attribute, as Qwen3-VL keeps its last image's offsets
    twin = twin_of(model)
    assert torch.equal(twin[0].remembered, torch.ones(3))
    assert twin[0].whole[0] is twin
    assert twin[0].call.__self__ is twin
    assert twin[1].told == "by itself"
    assert twin[0].one is not shared


def test_what_cannot_be_copied_is_told_with_the_way_out() -> None:
    model = nn.Linear(2, 2)
    model.lock = threading.Lock()
    with pytest.raises(InvalidModel, match="locks"):
        skeleton_of(model)


def test_views_of_one_storage_are_counted_once() -> None:
    whole = torch.zeros(8, 4)
    model = nn.Module()
    model.top, model.bottom = nn.Parameter(whole[:4]), nn.Parameter(whole[4:])
    assert tensor_bytes(model) == whole.nbytes


def test_a_stand_in_counts_as_the_number_that_it_is() -> None:
    model = nn.Linear(8, 4, bias=False)
    bones = skeleton_of(model)
    for one in (model, bones):
        one.weight.data = stand_in_for(one.weight)
        assert tensor_bytes(one) == 4
