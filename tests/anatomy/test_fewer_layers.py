"""A configuration of fewer layers is that of a model built with them; where it cannot tell, it says why."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, Glm4MoeConfig, GPT2Config, Qwen3Config, Qwen3MoeConfig

from inference_pio.anatomy.fewer_layers import of_fewer_layers
from tests import tiny

SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 32,
    "intermediate_size": 8, "num_hidden_layers": 5, "moe_intermediate_size": 8, **tiny.SPECIAL,
}  # fmt: skip


def glm() -> Any:
    return Glm4MoeConfig(n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=3, **SIZES)


def qwen_moe() -> Any:
    return Qwen3MoeConfig(num_experts=4, num_experts_per_tok=2, mlp_only_layers=[0, 2], **SIZES)


@pytest.mark.parametrize("make", [glm, qwen_moe], ids=["glm4_moe", "qwen3_moe"])
def test_the_kinds_of_layers_stay_with_them(make: Any) -> None:
    config, kept = make(), [0, 2, 4]
    whole = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    told = of_fewer_layers(config, kept)
    assert isinstance(told, dict)
    for name, value in told.items():
        setattr(config, name, value)
    fewer = AutoModelForCausalLM.from_config(config)
    assert [type(layer.mlp) for layer in fewer.model.layers] == [type(whole.model.layers[one].mlp) for one in kept]


def test_names_of_its_own_and_lists_by_kind_follow() -> None:
    assert of_fewer_layers(GPT2Config(n_layer=4), [0, 3]) == {"n_layer": 2}
    config = Qwen3Config(num_hidden_layers=4, use_sliding_window=True, sliding_window=8, max_window_layers=2)
    told = of_fewer_layers(config, [0, 2, 3])
    assert told == {
        "num_hidden_layers": 3, "max_window_layers": 1,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    }  # fmt: skip


def test_what_cannot_be_told_has_a_reason() -> None:
    periodic = Qwen3MoeConfig(decoder_sparse_step=2, **SIZES)
    assert "decoder_sparse_step=2" in str(of_fewer_layers(periodic, [0, 1]))
    assert "does not tell its layers by num_hidden_layers" in str(of_fewer_layers(tiny.Plain(), [0]))
