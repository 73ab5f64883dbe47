"""An export begins with compressed weights, or with fewer of them, and nothing else."""

from __future__ import annotations

import pytest

from inference_pio.errors import InvalidSetting
from inference_pio.formats.fp8 import Fp8Linear
from inference_pio.integration import get_model_optimization_status
from inference_pio.integration.compressing import compress, prune
from inference_pio.optimizations.compute.structured_pruning import SMALL_TEXT
from tests import tiny


def test_weights_are_compressed_with_the_parameters_given() -> None:
    model = compress(tiny.build("llama"), {"tensor_compression": {"format": "fp8"}})
    assert isinstance(model.get_submodule("model.layers.0.self_attn.q_proj"), Fp8Linear)
    applied = get_model_optimization_status(model)["applied_optimizations"]
    assert [step["name"] for step in applied] == ["tensor_compression"]


def test_as_many_channels_go_from_every_layer() -> None:
    model = prune(tiny.build("llama"), {"structured_pruning": {"align": 8, "text": SMALL_TEXT}})
    assert model.config.intermediate_size == 72  # type: ignore[union-attr]
    applied = get_model_optimization_status(model)["applied_optimizations"]
    assert [step["name"] for step in applied] == ["structured_pruning"]


def test_parameters_of_another_optimization_are_refused() -> None:
    with pytest.raises(InvalidSetting, match="flash_attention changes nothing that is exported"):
        compress(tiny.build("llama"), {"flash_attention": {"use_triton": True}})
    with pytest.raises(InvalidSetting, match="set structured_pruning's"):
        prune(tiny.build("llama"), {"tensor_compression": {"format": "int8"}})
