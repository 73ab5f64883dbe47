from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from inference_pio.errors import InvalidSetting, SourceError
from inference_pio.sources import open_model
from tests import tiny
from tests.sources.tiny_gguf import write_tiny_gguf
from tests.test_files import names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.build("llama").save_pretrained(tmp_path / "my-llama")
    return tmp_path / "my-llama"


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_is_opened_by_its_path(folder: Path, kind: type, capfd: pytest.CaptureFixture[str]) -> None:
    opened = open_model(kind(folder))
    assert (opened.name, opened.folder) == ("my-llama", folder)
    assert opened.origin == f"folder {folder}"
    assert opened.model.config.name_or_path == str(folder)
    assert not opened.model.training
    assert torch.equal(tiny.logits(opened.model, "llama"), tiny.logits(tiny.build("llama"), "llama"))
    assert capfd.readouterr() == ("", "")


def test_a_relative_folder_is_found_and_kept_as_an_absolute_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert open_model("my-llama").folder == folder


def test_a_gguf_file_is_opened_by_its_path(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    opened = open_model(tmp_path / "tiny.gguf", dtype=torch.bfloat16)
    assert opened.name == "tiny"
    assert opened.model.dtype == torch.bfloat16
    assert opened.tokenizer is not None
    assert "4-bit (Q4_1)" in opened.notes[0]
    assert opened.model.config.name_or_path == str(opened.folder)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("Converting tiny.gguf to safetensors in ")
    assert "de-quantizing" not in err


@pytest.mark.parametrize("spec", ["./nowhere", "~/no such folder", "/no/such/folder", Path("nowhere"), "C:\\models\\x"])
def test_a_path_that_leads_nowhere_is_not_taken_for_a_hub_id(spec: Any) -> None:
    with pytest.raises(SourceError, match=r"there is no folder or file .* a hub id, or 'demo'"):
        open_model(spec, progress=False)


def test_a_file_of_another_kind_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(SourceError, match=r"is neither a folder nor a \.gguf file"):
        open_model(tmp_path / "model.safetensors")


def test_anything_else_is_a_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="no folder 'demoo', and the hub cannot be reached"):
        open_model("demoo", progress=False)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.int8, None, 16])
def test_a_type_that_is_none_is_told_before_anything_is_opened(dtype: Any) -> None:
    with pytest.raises(InvalidSetting, match=r"give 'auto' or a floating-point torch\.dtype"):
        open_model("./nowhere", dtype=dtype)


@pytest.mark.parametrize("device", ["nosuch", "cuda:97", 3.5])
def test_a_device_that_is_not_there_is_told_before_anything_is_opened(device: Any) -> None:
    with pytest.raises(InvalidSetting, match="cannot be used with torch"):
        open_model("./nowhere", device=device)


def test_the_model_is_moved_where_it_is_asked_to_be(folder: Path) -> None:
    opened = open_model(folder, device="cpu")
    assert {parameter.device.type for parameter in opened.model.parameters()} == {"cpu"}


def test_an_empty_word_is_no_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError):
        open_model("", progress=False)
    assert names(tmp_path) == []
