"""A checkpoint holds what the model's class has, under the hub's names, experts one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_pio.artifact.checkpoint_tensors import CheckpointTensors
from inference_pio.errors import ArtifactError
from inference_pio.manager import ModularOptimizationManager
from inference_pio.plan.skeleton import skeleton_of
from tests import tiny


def tensors_of(name: str, **parameters: Any) -> CheckpointTensors:
    model = tiny.build(name)
    twin = skeleton_of(model)
    asked = {"tensor_compression": parameters}
    ModularOptimizationManager().apply_optimizations(model, ["tensor_compression"], parameters=asked)
    return CheckpointTensors(model, twin, "wide")


def test_experts_are_written_one_by_one_with_gate_and_up_apart() -> None:
    found = dict(tensors_of("qwen3_moe", format="int8"))
    for expert in range(8):
        for part, shape in (("gate_proj", [48, 64]), ("up_proj", [48, 64]), ("down_proj", [64, 48])):
            stem = f"model.layers.1.mlp.experts.{expert}.{part}.weight"
            assert found[f"{stem}_shape"].tolist() == shape
            assert found[f"{stem}_scale"].shape == (shape[0], 1)
    assert not [name for name in found if "gate_up" in name or name.endswith("_int8")]


def test_what_is_kept_is_told_by_name_and_tied_weights_are_written_once() -> None:
    tensors = tensors_of("qwen3", format="fp8", skip=["model.layers.0.mlp"])
    found = dict(tensors)
    assert tensors.kept == [*(f"model.layers.0.mlp.{part}_proj" for part in ("gate", "up", "down")), "lm_head"]
    assert "lm_head.weight" not in found
    assert found["model.embed_tokens.weight"].dtype is torch.float32
    assert [str(scheme) for scheme in tensors.schemes] == ["fp8 by rows"]
    assert tensors.moved == 0


def test_experts_of_one_layer_that_are_kept_are_told_by_a_pattern() -> None:
    tensors = tensors_of("qwen3_moe", format="fp8", targets=["attention"])
    list(tensors)
    assert "re:^model\\.layers\\.1\\.mlp\\.experts\\..*" in tensors.kept
    assert len([name for name in tensors.kept if "experts" in name]) == 1
    with pytest.raises(ArtifactError, match="compress the experts too"):
        tensors_of("qwen3_moe", format="int8", targets=["attention"])


def test_steps_are_in_a_dtype_that_the_models_own_loses_nothing_in() -> None:
    found = dict(tensors_of("llama", format="int8"))
    assert {tensor.dtype for name, tensor in found.items() if name.endswith("_scale")} == {torch.float32}


def test_a_model_that_is_not_built_as_its_class_is_is_refused() -> None:
    with pytest.raises(ArtifactError, match="Conv1D"):
        tensors_of("gpt2", format="int8")
    model = tiny.build("llama")
    twin = skeleton_of(model)
    del model.model.layers[2]
    manager = ModularOptimizationManager()
    manager.apply_optimizations(model, ["tensor_compression"])
    with pytest.raises(ArtifactError, match=r"model\.layers\.2\.input_layernorm\.weight"):
        CheckpointTensors(model, twin, "wide")
