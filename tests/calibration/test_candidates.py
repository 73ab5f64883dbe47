"""Candidates: told from shapes, with the bytes that their modules come to hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from inference_pio.anatomy.walk import experts
from inference_pio.calibration.allocation import KEPT
from inference_pio.calibration.candidates import choices_of, form_of, forms_in, is_one_matrix, weight_bytes
from inference_pio.plan.skeleton import skeleton_of
from tests import tiny


def fused_experts() -> nn.Module:
    config = tiny.CONFIGS["qwen3_moe"]()
    config.moe_intermediate_size = 64
    return next(module for _, module, _ in experts(tiny.build("qwen3_moe", config=config)))


MODULES = {
    "linear": lambda: nn.Linear(128, 100, dtype=torch.bfloat16),
    "odd linear": lambda: nn.Linear(100, 24),
    "conv1d": lambda: Conv1D(40, 64),
    "experts": fused_experts,
}


@pytest.mark.parametrize("name", list(MODULES))
def test_bytes_are_those_of_the_module_that_is_made(name: str) -> None:
    module = MODULES[name]()
    choices = choices_of(module)
    for one in choices[:-1]:
        made = form_of(one.format, one.group, module).nearest(module)
        assert sum(buffer.nbytes for buffer in made.buffers()) == one.nbytes, one
    assert (choices[-1].format, choices[-1].nbytes) == (KEPT, weight_bytes(module))
    assert [one.nbytes for one in choices] == sorted(one.nbytes for one in choices)
    assert [one.loss for one in choices] == sorted((one.loss for one in choices), reverse=True)


@pytest.mark.parametrize("name", list(MODULES))
def test_a_skeleton_tells_the_same(name: str) -> None:
    module = MODULES[name]()
    assert choices_of(skeleton_of(module)) == choices_of(module)


def test_groups_that_do_not_divide_are_no_choice() -> None:
    assert [str(one) for one in choices_of(nn.Linear(100, 24))] == ["int8", "kept"]
    assert [str(one) for one in choices_of(nn.Linear(96, 24))] == ["int4, 32", "int8", "kept"]


def test_a_form_that_saves_nothing_is_no_choice() -> None:
    assert [str(one) for one in choices_of(nn.Linear(1, 24, dtype=torch.bfloat16))] == ["kept"]


def test_one_form_alone_may_be_meant() -> None:
    layer = nn.Linear(64, 8)
    assert [str(one) for one in choices_of(layer, ("int4", 32))] == ["int4, 32"]
    assert [str(one) for one in choices_of(layer, ("int8", 128))] == ["int8"]
    assert [str(one) for one in choices_of(layer, ("fp8", 0))] == ["fp8"]


def test_a_choice_is_recorded_by_path() -> None:
    four, eight, kept = choices_of(nn.Linear(32, 8))
    assert forms_in({"a": four, "b": eight, "c": kept}) == {
        "formats": {"a": "int4", "b": "int8", "c": "kept"}, "groups": {"a": 32},
    }  # fmt: skip


def test_a_linear_layer_is_told_from_experts() -> None:
    assert is_one_matrix(nn.Linear(2, 2))
    assert is_one_matrix(Conv1D(2, 2))
    assert not is_one_matrix(fused_experts())
