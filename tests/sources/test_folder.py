from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertModel, CLIPConfig, dynamic_module_utils

from inference_pio.errors import SourceError
from inference_pio.sources.folder import read_folder
from inference_pio.sources.gguf import converted
from tests import tiny
from tests.sources.tiny_gguf import write_tiny_gguf


def saved(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    model = tiny.build(name, dtype)
    model.save_pretrained(folder)
    return model


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


@pytest.mark.parametrize("name", tiny.HF_NAMES)
def test_every_family_comes_back_as_the_same_class_with_the_same_bits(name: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path)
    read = read_folder(tmp_path)
    assert type(read.model) is type(model)
    assert not read.model.training
    assert read.model.config.name_or_path == str(tmp_path)
    got, expected = read.model.state_dict(), model.state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)
    assert torch.equal(tiny.logits(read.model, name), tiny.logits(model, name))


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.float32, "auto", torch.float32),
        (torch.float32, torch.bfloat16, torch.bfloat16),
    ],
)
def test_the_type_is_the_stored_one_unless_asked(
    tmp_path: Path, stored: torch.dtype, asked: Any, expected: torch.dtype
) -> None:
    saved("llama", tmp_path, stored)
    assert read_folder(tmp_path, dtype=asked).model.dtype == expected


def test_without_architectures_the_models_type_decides(tmp_path: Path) -> None:
    model = saved("qwen3_vl", tmp_path)
    edit_config(tmp_path, architectures=None)
    assert type(read_folder(tmp_path).model) is type(model)


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    read = read_folder(tmp_path)
    assert read.tokenizer is None
    assert read.notes == ("the source holds no tokenizer: only token numbers go in and out",)


def test_a_tokenizer_comes_along_and_nothing_is_noted(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    source = converted(tmp_path / "tiny.gguf", progress=False).folder
    saved("llama", tmp_path / "model")
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "model")
    read = read_folder(tmp_path / "model")
    assert read.tokenizer is not None
    assert read.notes == ()


def test_a_damaged_tokenizer_is_a_source_error(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(SourceError, match=f"cannot read the model in {tmp_path}"):
        read_folder(tmp_path)


def test_missing_weights_are_refused_rather_than_random(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"no weights for model\.layers\.0\.mlp\.up_proj\.weight: .* random"):
        read_folder(tmp_path)


def test_weights_that_the_model_does_not_use_are_noted(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {"extra.weight": torch.zeros(3)}, path, metadata={"format": "pt"})
    assert "does not use: extra.weight" in read_folder(tmp_path).notes[0]


def test_sizes_that_disagree_are_a_source_error(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    edit_config(tmp_path, intermediate_size=64)
    with pytest.raises(SourceError, match="cannot read the model"):
        read_folder(tmp_path)


def test_an_unknown_kind_of_model_is_a_source_error(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    edit_config(tmp_path, model_type="no_such_kind")
    with pytest.raises(SourceError, match="no_such_kind"):
        read_folder(tmp_path)


def test_a_model_that_generates_no_text_is_refused(tmp_path: Path) -> None:
    CLIPConfig().save_pretrained(tmp_path)
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(SourceError, match="generates no text"):
        read_folder(tmp_path)


def test_code_in_a_folder_does_not_run_unless_trusted(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    trace = tmp_path / "it ran"
    (tmp_path / "own.py").write_text(f"open({str(trace)!r}, 'w')\nclass Config: pass\n")
    edit_config(tmp_path, model_type="own_kind", auto_map={"AutoConfig": "own.Config"})
    with pytest.raises(SourceError, match="trust_remote_code=True: read it first"):
        read_folder(tmp_path)
    assert not trace.exists()


def test_trusted_code_in_a_folder_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    model = saved("llama", tmp_path / "owned_llama")
    (tmp_path / "owned_llama" / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'owned'\n"
        "class OwnLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    own_code = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnLM"}
    edit_config(tmp_path / "owned_llama", model_type="owned", auto_map=own_code, architectures=["OwnLM"])
    read = read_folder(tmp_path / "owned_llama", trust_remote_code=True)
    assert type(read.model).__name__ == "OwnLM"
    assert torch.equal(tiny.logits(read.model, "llama"), tiny.logits(model, "llama"))


def test_a_bare_encoder_is_not_passed_off_as_a_generator(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=50, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(SourceError, match="random numbers"):
        read_folder(tmp_path)
