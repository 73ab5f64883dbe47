from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from inference_pio.errors import CorruptFile, SourceError
from inference_pio.sources.layout import check_folder, weight_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def add_shards(folder: Path, weight_map: dict[str, str], present: list[str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in present:
        save_file({"weight": torch.zeros(8)}, folder / name)


def test_a_whole_folder_passes_with_one_file_or_several(folder: Path) -> None:
    save_file({"weight": torch.zeros(8)}, folder / "model.safetensors")
    check_folder(folder)
    add_shards(folder, {"a": "b.safetensors", "c": "a.safetensors"}, ["a.safetensors", "b.safetensors"])
    check_folder(folder)
    assert [path.name for path in weight_files(folder)] == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("other.txt", "not a model folder in the Hugging Face layout"),
        ("adapter_config.json", "it holds an adapter"),
        ("model.Q4_1.gguf", r"it holds model\.Q4_1\.gguf; give the path of that file"),
    ],
)
def test_a_folder_without_a_configuration_says_what_it_is(tmp_path: Path, file: str, told: str) -> None:
    (tmp_path / file).touch()
    with pytest.raises(SourceError, match=f"has no config.json: .*{told}"):
        check_folder(tmp_path)


def test_a_configuration_that_is_no_json_is_named(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "lla')
    with pytest.raises(CorruptFile, match=r"config\.json is not valid JSON"):
        check_folder(folder)


def test_weights_that_are_missing_are_told(folder: Path) -> None:
    with pytest.raises(SourceError, match=r"no weights: model\.safetensors is missing"):
        check_folder(folder)


def test_pickled_weights_are_refused_with_the_reason(folder: Path) -> None:
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(SourceError, match=r"pickled form \(pytorch_model\.bin\), which can run code"):
        check_folder(folder)


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_truncated_safetensors_file_is_named(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    save_file({"weight": torch.zeros(8)}, path)
    os.truncate(path, keep if keep >= 0 else path.stat().st_size + keep)
    with pytest.raises(CorruptFile, match=r"model\.safetensors is damaged or cut short"):
        check_folder(folder)


def test_a_listed_file_that_is_missing_is_named(folder: Path) -> None:
    add_shards(folder, {"a": "a.safetensors", "b": "b.safetensors"}, ["a.safetensors"])
    with pytest.raises(SourceError, match=r"b\.safetensors is missing though"):
        check_folder(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/secret.safetensors", "..", "", 3])
def test_an_index_cannot_lead_out_of_its_folder(folder: Path, name: str) -> None:
    add_shards(folder, {"a": name}, [])
    with pytest.raises(CorruptFile, match="does not map tensors to files of its own folder"):
        check_folder(folder)


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": []}', "{"])
def test_an_index_that_makes_no_sense_is_corrupt(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CorruptFile, match=r"index\.json"):
        check_folder(folder)
