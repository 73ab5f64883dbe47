"""Saving writes the optimized bytes, whole or not at all."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from inference_pio.artifact import load, save
from inference_pio.artifact.manifest import FILE, TENSORS, read_manifest
from inference_pio.errors import ArtifactError, DiskFull, InvalidModel, InvalidSetting, StorageError
from inference_pio.plan.skeleton import tensor_bytes
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.sweep import TOGETHER, Case


def optimized() -> Case:
    case = Case("llama", torch.bfloat16)
    case.apply(*TOGETHER)
    return case


def test_the_file_has_the_optimized_size(tmp_path: Path) -> None:
    case = optimized()
    folder = save(case.model, tmp_path / "saved")
    weights = tensor_bytes(case.model)
    assert weights <= (folder / TENSORS).stat().st_size < weights + 20_000
    assert read_manifest(folder).weight_bytes == weights
    with safe_open(folder / TENSORS, "pt") as file:
        assert any(name.endswith("weight_int8") for name in file.keys())  # noqa: SIM118 - not a mapping


def test_saving_does_not_touch_the_model(tmp_path: Path) -> None:
    case = optimized()
    before = fingerprint(case.model)
    save(case.model, tmp_path / "saved")
    assert before.differences(fingerprint(case.model)) == []


def test_a_plain_model_is_sent_to_save_pretrained(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="save_pretrained"):
        save(tiny.build("llama"), tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_in_it_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="not overwritten"):
        save(optimized().model, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["thesis.txt"]


def test_a_copys_manifest_names_the_librarys_functions_and_not_ours(tmp_path: Path) -> None:
    case = optimized()
    first = read_manifest(save(case.model, tmp_path / "first"))
    twin = read_manifest(save(copy.deepcopy(case.model), tmp_path / "twin"))
    assert twin.attention == first.attention == {"config": "sdpa"}


def test_an_older_save_is_replaced_as_a_whole(tmp_path: Path) -> None:
    case = optimized()
    save(case.model, tmp_path / "saved")
    case.manager.remove_optimizations(case.model, [name for name in TOGETHER if name != "tensor_compression"])
    save(case.model, tmp_path / "saved")
    assert [step.name for step in read_manifest(tmp_path / "saved").steps] == ["tensor_compression"]
    load(tmp_path / "saved")


def test_files_of_the_users_beside_an_older_save_are_not_lost(tmp_path: Path) -> None:
    case = optimized()
    folder = save(case.model, tmp_path / "saved")
    (folder / "thesis.txt").write_text("years of work")
    before = (folder / FILE).read_bytes()
    with pytest.raises(ArtifactError, match=r"thesis\.txt \(1 in all\)"):
        save(case.model, folder)
    assert (folder / FILE).read_bytes() == before
    (folder / "thesis.txt").unlink()
    (folder / FILE).write_text("{}")
    with pytest.raises(ArtifactError, match=r"config\.json"):
        save(case.model, folder)


@pytest.mark.parametrize(
    ("model", "folder", "tokenizer", "error"),
    [
        ("llama", "saved", None, InvalidModel),
        (None, None, None, InvalidSetting),
        (None, "saved", "gpt2", InvalidSetting),
        (None, 300 * "x", None, StorageError),
    ],
)
def test_what_is_no_model_folder_or_tokenizer_is_told(
    model: Any, folder: Any, tokenizer: Any, error: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(error):
        save(model or optimized().model, folder and tmp_path / folder, tokenizer)
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = optimized()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DiskFull, match="free"):
        save(case.model, tmp_path / "out" / "saved")
    assert not list(tmp_path.glob("out/*"))


def test_an_unwritable_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        save(optimized().model, tmp_path / "file" / "saved")
