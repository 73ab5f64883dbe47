"""A tied weight is known by its object, whoever holds it under whatever name."""

from __future__ import annotations

from torch import nn

from inference_pio.anatomy.shared_weights import shared_weights, why_shared
from tests import tiny


def test_a_tied_head_is_shared_and_nothing_else_is() -> None:
    model = tiny.build("qwen3")
    shared = shared_weights(model)
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    assert shared == ({id(model.lm_head.weight)} if tied else set())
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    shared = shared_weights(model)
    assert why_shared(model.model.layers[0].mlp.parameters(), shared) == "it shares its weights with another module"
    assert why_shared(model.model.layers[0].self_attn.parameters(), shared) is None


def test_one_module_under_two_names_holds_its_weights_once() -> None:
    layer = nn.Linear(2, 2)
    assert shared_weights(nn.Sequential(layer, layer)) == set()
