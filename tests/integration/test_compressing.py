"""An export begins with compressed weights and nothing else."""

from __future__ import annotations

import pytest

from inference_pio.errors import InvalidSetting
from inference_pio.formats.fp8 import Fp8Linear
from inference_pio.integration import get_model_optimization_status
from inference_pio.integration.compressing import compress
from tests import tiny


def test_weights_are_compressed_with_the_parameters_given() -> None:
    model = compress(tiny.build("llama"), {"tensor_compression": {"format": "fp8"}})
    assert isinstance(model.get_submodule("model.layers.0.self_attn.q_proj"), Fp8Linear)
    applied = get_model_optimization_status(model)["applied_optimizations"]
    assert [step["name"] for step in applied] == ["tensor_compression"]


def test_parameters_of_another_optimization_are_refused() -> None:
    with pytest.raises(InvalidSetting, match="flash_attention changes nothing that is exported"):
        compress(tiny.build("llama"), {"flash_attention": {"use_triton": True}})
