"""What is written plainly is what the class builds of the configuration, by the hub's names; all else is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from inference_pio.artifact import export, load, save
from inference_pio.artifact.plain_tensors import PlainTensors
from inference_pio.errors import ArtifactError, InvalidSetting
from inference_pio.manager import ModularOptimizationManager
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.artifact.help import config_of

SMALL = {"align": 8, "tokens": 512, "pruning_ratio": 0.5, "allocation": "uniform"}


def pruned(name: str, *more: str, **asked: Any) -> Any:
    manager = ModularOptimizationManager()
    parameters = {"structured_pruning": {**SMALL, **asked}}
    return manager.apply_optimizations(tiny.build(name), ["structured_pruning", *more], parameters=parameters)


def read_back(name: str, folder: Path) -> Any:
    """A copy in memory: the file is mapped, and a convolution from where it lies there differs in the last bit."""
    auto = AutoModelForImageTextToText if name == "qwen3_vl" else AutoModelForCausalLM
    return copy.deepcopy(auto.from_pretrained(folder).eval())


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_vl", "qwen3_moe", "glm4_moe", "glm4_moe_lite"])
def test_a_model_pruned_evenly_is_read_by_the_library_and_answers_the_same(name: str, tmp_path: Path) -> None:
    model = pruned(name)
    before = fingerprint(model)
    made = export(model, tmp_path / "out", "hf")
    assert before.differences(fingerprint(model)) == []
    assert set(made.formats) == {"float32"}
    assert made.weight_bytes == sum(parameter.nbytes for parameter in model.parameters()) + sum(
        buffer.nbytes for path, buffer in model.named_buffers() if path.endswith("correction_bias")
    )
    text = config_of(made.folder).get("text_config", config_of(made.folder))
    assert text["intermediate_size"] == 48
    again = read_back(name, made.folder)
    assert torch.equal(tiny.logits(again, name), tiny.logits(model, name))


@pytest.mark.parametrize(
    ("name", "units", "key"),
    [("qwen3", ["mlp", "kv_heads"], "num_key_value_heads"), ("qwen3_moe", ["experts"], "num_experts"),
     ("glm4_moe", ["experts", "kv_heads"], "n_routed_experts"), ("glm4_moe_lite", ["experts"], "n_routed_experts")],
)  # fmt: skip
def test_fewer_heads_and_experts_are_read_by_the_library_too(
    name: str, units: list[str], key: str, tmp_path: Path
) -> None:
    model = pruned(name, units=units, calibration="none")
    made = export(model, tmp_path / "out", "hf")
    again = read_back(name, made.folder)
    assert getattr(again.config, key) == getattr(tiny.build(name).config, key) // 2
    assert torch.equal(tiny.logits(again, name), tiny.logits(model, name))


def test_what_was_saved_is_exported_after_it_was_loaded(tmp_path: Path) -> None:
    model = pruned("qwen3_moe", "flash_attention", "kernel_fusion")
    save(model, tmp_path / "saved")
    made = export(load(tmp_path / "saved"), tmp_path / "out", "hf")
    assert config_of(made.folder)["moe_intermediate_size"] == 24
    plain = pruned("qwen3_moe")
    assert torch.equal(tiny.logits(read_back("qwen3_moe", made.folder), "qwen3_moe"), tiny.logits(plain, "qwen3_moe"))


def test_widths_that_differ_between_layers_are_refused_with_the_way_out(tmp_path: Path) -> None:
    model = pruned("llama", skip=["model.layers.1.*"])
    with pytest.raises(ArtifactError, match=r"layers\.0\.mlp.* widths differ between layers.*allocation='uniform'"):
        export(model, tmp_path / "out", "hf")
    assert not (tmp_path / "out").exists()


def test_codes_other_structures_and_plain_models_are_refused(tmp_path: Path) -> None:
    manager = ModularOptimizationManager()
    coded = manager.apply_optimizations(pruned("qwen3"), ["tensor_compression"])
    with pytest.raises(ArtifactError, match="weights are compressed"):
        export(coded, tmp_path / "out", "hf")
    with pytest.raises(ArtifactError, match="nothing to export: prune it"):
        export(tiny.build("qwen3"), tmp_path / "out", "hf")
    with pytest.raises(InvalidSetting, match="plain weights"):
        export(pruned("qwen3"), tmp_path / "out", "hf", int4="symmetric")
    model = tiny.build("llama")
    other = copy.deepcopy(model)
    other.model.layers[0].mlp.register_buffer("more", torch.ones(2))
    with pytest.raises(ArtifactError, match=r"layers\.0\.mlp\.more"):
        PlainTensors(other, model)
    assert not (tmp_path / "out").exists()


def test_tied_weights_are_written_once() -> None:
    model = tiny.build("qwen3")
    tensors = PlainTensors(model, tiny.build("qwen3"))
    assert "lm_head.weight" not in dict(tensors)
    assert sum(tensors.counts.values()) == len(list(model.parameters()))
