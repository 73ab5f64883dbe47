"""Groups of heads are found where they are, and without some an attention says what zeros in their place say."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy.head_groups import HeadGroups, head_groups
from tests import tiny


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe", "qwen3_vl", "glm4_moe"])
def test_each_attention_of_a_decoder_has_groups(name: str) -> None:
    model = tiny.build(name)
    found = [one for one in head_groups(model) if isinstance(one, HeadGroups)]
    assert len(found) == model.config.get_text_config().num_hidden_layers
    assert {(one.width, one.queries) for one in found} == {(2, 2)}
    assert all(one.down_weights.shape[-1] == one.width * one.block for one in found)


@pytest.mark.parametrize("name", ["qwen3", "glm4_moe"])  # norms of heads, biases
def test_fewer_groups_say_what_zeros_in_the_result_say(name: str) -> None:
    model = tiny.build(name)
    zeros = copy.deepcopy(model)
    kept = torch.tensor([[1]])
    for one, other in zip(head_groups(model), head_groups(zeros), strict=True):
        assert isinstance(one, HeadGroups)
        assert isinstance(other, HeadGroups)
        down = one.down_weights[..., one.columns(kept)[0]]
        with torch.no_grad():
            other.module.o_proj.weight.copy_(one.spread(kept, down)[0])  # type: ignore[union-attr,operator]
        for key, weight in one.narrowed(kept, down).items():
            layer, _, last = key.rpartition(".")
            setattr(one.module.get_submodule(layer), last, nn.Parameter(weight))
    given: dict[str, Any] = tiny.inputs(name, model)
    torch.testing.assert_close(model(**given).logits, zeros(**given).logits, rtol=1e-4, atol=1e-5)


def test_others_have_none_with_the_reason() -> None:
    assert {reason for _, reason in head_groups(tiny.build("glm4_moe_lite"))} == {  # type: ignore[misc]
        "its keys and values come out of a latent that all of its heads share, so no group can go"
    }
    ((path, reason),) = head_groups(tiny.build("plain"))  # type: ignore[misc]
    assert (path, "no attention" in str(reason)) == ("", True)
    model = tiny.build("llama")
    del vars(model.model.layers[0].self_attn.config)["head_dim"]  # type: ignore[union-attr,index]
    assert all("derives it" in one[1] for one in head_groups(model) if isinstance(one, tuple))


def test_configurations_and_modules_are_told_the_new_numbers() -> None:
    model = tiny.build("qwen3")
    one = next(iter(head_groups(model)))
    assert isinstance(one, HeadGroups)
    assert one.told(model.config, 1) == {"num_key_value_heads": 1, "num_attention_heads": 2}
    assert one.told(copy.copy(model.config), 1) == {}
    one.module.num_heads, one.module.num_key_value_heads = 4, 2  # type: ignore[assignment]
    assert [(name, value) for _, name, value in one.numbers(1)] == [("num_key_value_heads", 1), ("num_heads", 2)]
