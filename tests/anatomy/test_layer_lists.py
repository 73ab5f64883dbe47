"""The decoder's list of layers is found in every family, and a tower's is told apart."""

from __future__ import annotations

import pytest
from torch import nn

from inference_pio.anatomy.layer_lists import listed_layers
from tests import tiny


@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_every_layer_of_the_text_decoder_is_listed_in_order(name: str) -> None:
    model = tiny.build(name)
    found = [(path, layer) for path, layer, in_vision in listed_layers(model) if not in_vision]
    assert [path.rpartition(".")[2] for path, _ in found] == [str(number) for number in range(len(found))]
    assert len(found) == model.config.get_text_config().num_hidden_layers
    assert all(model.get_submodule(path) is layer for path, layer in found)


def test_layers_of_a_vision_tower_are_told_apart() -> None:
    paths = [path for path, _, in_vision in listed_layers(tiny.build("qwen3_vl")) if in_vision]
    assert len(paths) == 2
    assert all("visual" in path for path in paths)


def test_lists_without_attention_or_of_unlike_modules_are_none() -> None:
    assert list(listed_layers(tiny.build("plain"))) == []
    assert list(listed_layers(nn.Sequential(nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])))) == []
