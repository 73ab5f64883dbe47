"""Every part of each family that fused kernels may serve is named, and what is passed over says why."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from inference_pio.anatomy.fused_parts import FORWARDS, MERGED_FORWARDS, MERGED_LAYERS, fused_parts
from tests import tiny

SERVED = {
    "llama": {"decoder_layer": 3, "attention": 3, "mlp": 3, "norm": 7},
    "gpt2": {},
    "qwen3": {"decoder_layer": 3, "attention": 3, "mlp": 3, "norm": 13},
    "qwen3_moe": {"decoder_layer": 2, "attention": 2, "mlp": 1, "norm": 9},
    "qwen3_vl": {"decoder_layer": 2, "attention": 2, "mlp": 2, "norm": 9},
    "glm4_moe": {"decoder_layer": 2, "attention": 2, "mlp": 2, "norm": 9},
    "glm4_moe_lite": {"decoder_layer": 2, "mlp": 2, "norm": 9},
    "plain": {},
}
PASSED_OVER = {
    "qwen3_moe": {"its experts are served by its experts function": 1},
    "qwen3_vl": {"the vision tower is kept": 8},
    "glm4_moe": {"its experts are served by its experts function": 1},
    "glm4_moe_lite": {
        "its experts are served by its experts function": 1,
        "latent attention is left to the library: its norms alone are served": 2,
    },
}


@pytest.mark.parametrize("name", tiny.TINY)
def test_parts_are_found_and_reasons_given(name: str) -> None:
    parts = list(fused_parts(tiny.build(name)))
    assert Counter(part.role for part in parts if part.skip is None) == SERVED[name]
    if name != "gpt2":
        assert Counter(part.skip for part in parts if part.skip) == PASSED_OVER.get(name, {})
    assert {part.role for part in parts if part.skip is None} <= FORWARDS.keys()


def test_a_skeleton_has_the_same_parts() -> None:
    model = tiny.build("qwen3")
    with torch.device("meta"):
        found = [(part.path, part.role, part.skip) for part in fused_parts(model.to("meta"))]
    assert found == [(part.path, part.role, part.skip) for part in fused_parts(tiny.build("qwen3"))]


def test_what_is_merged_has_layers_of_one_input() -> None:
    assert MERGED_FORWARDS.keys() == MERGED_LAYERS.keys()
    for part in fused_parts(tiny.build("glm4_moe")):
        if part.role in MERGED_LAYERS and part.skip is None:
            layers = MERGED_LAYERS[part.role](part.module)
            assert len({layer.in_features for layer in layers}) == 1
            assert all(isinstance(layer, nn.Linear) for layer in layers)
