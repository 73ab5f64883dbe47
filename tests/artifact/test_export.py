"""An export holds the weights that the model computes with, whole or not at all, and says what the layout changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from inference_pio.artifact import export
from inference_pio.errors import ArtifactError, InvalidSetting, StorageError, UnknownName
from inference_pio.files import sha256_of
from inference_pio.manager import ModularOptimizationManager
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.artifact.help import config_of, plain_twin, weights_of
from tests.model_folder import byte_tokenizer
from tests.quality import reference_models

MODELS = ["qwen3", "qwen3_moe", "qwen3_vl", "glm4_moe", "glm4_moe_lite"]


def compressed(model: Any, **parameters: Any) -> Any:
    asked = {"tensor_compression": parameters}
    return ModularOptimizationManager().apply_optimizations(model, ["tensor_compression"], parameters=asked)


def original_names(name: str) -> set[str]:
    from safetensors import safe_open

    with safe_open(reference_models.FOLDER / name / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("format", "most"), [("int8", 0), ("fp8", 0), ("int4", 0.004)])
def test_a_trained_models_weights_are_written_under_the_names_that_it_came_with(
    name: str, format: str, most: float, tmp_path: Path
) -> None:
    model = compressed(reference_models.load(name, torch.float32), format=format)
    before = fingerprint(model)
    made = export(model, tmp_path / "out")
    assert before.differences(fingerprint(model)) == []
    found = weights_of(made.folder)
    assert found.keys() == original_names(name)
    twin = plain_twin(model, reference_models.load(name, torch.float32))
    from transformers.core_model_loading import revert_weight_conversion

    error = squares = 0.0
    for key, weight in revert_weight_conversion(twin, dict(twin.state_dict())).items():
        if key in found:
            error += float((found[key] - weight).square().sum())
            squares += float(weight.square().sum())
    assert (error / squares) ** 0.5 <= most
    assert (made.weights_moved is None) == (format != "int4")


@pytest.mark.parametrize(("int4", "low", "high", "told"), [
    ("wide", 0.001, 0.004, "8 bits"), ("symmetric", 0.04, 0.09, "about doubles"), ("asymmetric", 0.03, 0.08, "vLLM"),
])  # fmt: skip
def test_what_int4_becomes_is_told_with_how_far_the_weights_moved(
    int4: Any, low: float, high: float, told: str, tmp_path: Path
) -> None:
    model = compressed(reference_models.load("qwen3"), format="int4", group_size=32)
    made = export(model, tmp_path / "out", int4=int4)
    assert made.weights_moved is not None
    assert low < made.weights_moved < high
    assert told in made.notes[0]
    assert made.has_zeros == (int4 == "asymmetric")
    found = weights_of(made.folder)
    key = "model.layers.1.mlp.down_proj.weight"
    now = model.get_submodule(key.removesuffix(".weight")).dequantize()
    assert low / 2 < (found[key] - now).norm() / now.norm() < high


def test_the_folder_has_what_others_read_a_model_from(tmp_path: Path) -> None:
    model = compressed(reference_models.load("qwen3"), format="int8")
    made = export(model, tmp_path / "out")
    names = {path.name for path in made.folder.iterdir()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    source = reference_models.FOLDER / "qwen3" / "tokenizer.json"
    assert sha256_of(made.folder / "tokenizer.json") == sha256_of(source)
    config = config_of(made.folder)
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["quantization_config"]["ignore"] == ["lm_head"]
    assert (config["tie_word_embeddings"], config["dtype"]) == (True, "bfloat16")
    assert made.to_json()["formats"] == {"int8 by rows": 35}


def test_a_tokenizer_that_is_given_is_written_and_a_cast_model_is_told_as_it_is(tmp_path: Path) -> None:
    model = compressed(reference_models.load("qwen3").float(), format="int8")
    made = export(model, tmp_path / "out", tokenizer=byte_tokenizer())
    assert (made.folder / "chat_template.jinja").is_file() or "chat_template" in (
        made.folder / "tokenizer_config.json"
    ).read_text()
    assert config_of(made.folder)["dtype"] == "float32"


def test_other_optimizations_beside_it_change_nothing(tmp_path: Path) -> None:
    model = tiny.build("qwen3")
    manager = ModularOptimizationManager()
    manager.apply_optimizations(model, ["tensor_compression"])
    export(model, tmp_path / "alone")
    manager.apply_optimizations(model, ["flash_attention", "kernel_fusion"])
    export(model, tmp_path / "beside")
    for file in ("model.safetensors", "config.json"):
        assert sha256_of(tmp_path / "alone" / file) == sha256_of(tmp_path / "beside" / file)


def test_what_cannot_be_exported_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    plain, ready = tiny.build("llama"), compressed(tiny.build("llama"))
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("years of work")
    calls: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
        (ArtifactError, "no compressed weights", (plain, tmp_path / "out"), {}),
        (ArtifactError, "not empty", (ready, full), {}),
        (ArtifactError, "transformers library", (compressed(tiny.build("plain")), tmp_path / "out"), {}),
        (UnknownName, "compressed-tensors", (ready, tmp_path / "out", "gguf"), {}),
        (UnknownName, "symmetric", (ready, tmp_path / "out"), {"int4": "symetric"}),
        (InvalidSetting, "save_pretrained", (ready, tmp_path / "out"), {"tokenizer": "gpt2"}),
        (StorageError, "cannot write", (ready, tmp_path / (300 * "x")), {}),
        (ArtifactError, "Conv1D", (compressed(tiny.build("gpt2")), tmp_path / "out"), {}),
    ]
    for error, told, arguments, rest in calls:
        with pytest.raises(error, match=told):
            export(*arguments, **rest)
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["full"]
    assert [path.name for path in full.iterdir()] == ["thesis.txt"]
