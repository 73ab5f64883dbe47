"""The skeleton has the shapes and ties of a model and none of its bytes."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from inference_pio.errors import InvalidModel
from inference_pio.plan.skeleton import skeleton_of, tensor_bytes
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
