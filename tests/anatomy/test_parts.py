"""Towers, attention modules, fused experts and widths, told by structure."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from inference_pio.anatomy.parts import (
    base_of,
    is_adapted,
    is_experts,
    other_tower_paths,
    runs_attention,
    vision_paths,
    weights_of,
    widths,
)
from inference_pio.formats.int4 import Int4Linear
from inference_pio.formats.int8 import Int8Linear
from tests import tiny


def test_only_a_vision_model_has_a_vision_tower() -> None:
    assert {name: vision_paths(tiny.build(name)) for name in tiny.TINY if vision_paths(tiny.build(name))} == {
        "qwen3_vl": ["model.visual"]
    }
    assert vision_paths(tiny.build("qwen3_vl").model.visual) == [""]
    assert other_tower_paths(tiny.build("qwen3_vl")) == []


def test_a_tower_of_another_kind_is_told_by_its_configuration() -> None:
    model = tiny.build("llama")
    model.config.audio_config = object()
    model.ears = nn.Linear(2, 2)
    model.ears.config = model.config.audio_config
    assert other_tower_paths(model) == ["ears"]


def test_attention_is_found_in_the_code_and_whole_models_are_not_taken_for_it() -> None:
    model = tiny.build("gpt2")
    assert runs_attention(model.transformer.h[0].attn)
    assert not runs_attention(model)
    assert not runs_attention(model.transformer.h[0])
    assert not runs_attention(nn.MultiheadAttention(4, 2))


@pytest.mark.parametrize("shape", [(4, 6, 8), (1, 6, 8), (6, 8)])
def test_a_stack_of_matrices_makes_experts(shape: tuple[int, ...]) -> None:
    module = nn.Module()
    module.stack = nn.Parameter(torch.ones(shape))
    assert is_experts(module) == (shape == (4, 6, 8))
    assert not is_experts(nn.Conv1d(8, 4, 6))


def test_widths_are_read_off_whatever_computes_like_a_linear() -> None:
    assert widths(nn.Linear(3, 2)) == widths(Conv1D(2, 3)) == widths(Int8Linear.from_linear(nn.Linear(3, 2))) == (3, 2)
    assert widths(nn.LayerNorm(3)) is None


def test_a_layer_of_groups_is_no_stack_of_experts() -> None:
    assert not is_experts(Int4Linear.from_linear(nn.Linear(64, 4), 32))  # its scales have three dimensions


def test_a_compressed_layer_holds_weights_in_buffers() -> None:
    assert set(weights_of(Int8Linear.from_linear(nn.Linear(3, 2)))) == {"bias", "weight_int8", "weight_scale"}
    assert set(weights_of(nn.BatchNorm1d(2))) == {"weight", "bias"}


def test_adapters_may_be_wrapped_around_adapters() -> None:
    inner, outer, layer = nn.Module(), nn.Module(), nn.Linear(3, 2)
    inner.base_layer, outer.base_layer = layer, inner
    assert base_of(outer) is layer
    assert is_adapted(outer)
    assert not is_adapted(layer)
    assert widths(outer) == (3, 2)
