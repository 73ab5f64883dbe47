"""Layers that may go are told apart from those that must stay, each with its reason."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from inference_pio.anatomy.removable_layers import StackLayer, stack_layers
from tests import tiny


def layers(model: nn.Module) -> list[StackLayer]:
    found = stack_layers(model)
    assert not isinstance(found, str)
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "qwen3_moe", "qwen3_vl", "glm4_moe", "glm4_moe_lite"])
def test_the_first_stays_and_others_may_go(name: str) -> None:
    model = tiny.build(name)
    found = layers(model)
    assert "how long a cache is" in str(found[0].kept)
    assert [layer.kept for layer in found[1:]] == [None] * (len(found) - 1)
    for layer in found:
        assert model.get_submodule(layer.path) is layer.module
        assert model.get_submodule(layer.attention_path) in layer.module.children()
        assert int(layer.path.rpartition(".")[2]) == layer.number


def test_layers_that_pictures_enter_and_the_first_of_a_kind_stay() -> None:
    model: Any = tiny.build("qwen3_vl")
    model.config.vision_config.deepstack_visual_indexes = [0, 1]
    assert "features of pictures enter the first 2 layers" in str(layers(model)[1].kept)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    kinds = ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]
    config = Qwen3Config(
        vocab_size=32, intermediate_size=8, num_hidden_layers=4, layer_types=kinds, sliding_window=4,
        use_sliding_window=True, **sizes, **tiny.SPECIAL,
    )  # fmt: skip
    reasons = [layer.kept for layer in layers(Qwen3ForCausalLM(config))]
    assert reasons[1] is reasons[3] is None
    assert "the first layer of sliding_attention" in str(reasons[2])


def test_what_is_no_stack_is_told() -> None:
    assert "no attention" in str(stack_layers(tiny.build("plain")))
    model: Any = copy.deepcopy(tiny.build("llama"))
    model.model.layers[1].self_attn = nn.Identity()
    assert stack_layers(model) == "not every layer of it holds one attention"
    twice: Any = tiny.build("llama")
    twice.model.layers[2] = twice.model.layers[1]
    assert stack_layers(twice) == "its list holds one layer at several places"
    shared: Any = tiny.build("qwen3")
    shared.config.num_kv_shared_layers = 1
    assert stack_layers(shared) == "its last layers read the cache of others"
