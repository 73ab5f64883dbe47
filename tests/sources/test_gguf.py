from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from inference_pio.errors import CorruptFile, DiskFull, MissingExtra, SourceError, StorageError
from inference_pio.sources import cache, gguf, gguf_header, manifest
from inference_pio.sources.folder import read_folder
from inference_pio.sources.gguf import converted
from tests.sources.tiny_gguf import CHAT_TEMPLATE, write_tiny_gguf
from tests.test_files import disk_full_after, names


def test_a_file_becomes_a_folder_whose_weights_are_the_dequantized_ones_bit_for_bit(tmp_path: Path) -> None:
    expected = write_tiny_gguf(tmp_path / "tiny.gguf")
    read = read_folder(converted(tmp_path / "tiny.gguf", progress=False).folder)
    got = read.model.state_dict()
    assert got.keys() == expected.keys() | {"lm_head.weight"}
    for name, tensor in expected.items():
        assert got[name].dtype == torch.float32
        assert torch.equal(got[name], tensor), name
    assert read.model.lm_head.weight is read.model.model.embed_tokens.weight


def test_the_folder_holds_a_plain_model_with_its_tokenizer(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    read = read_folder(converted(tmp_path / "tiny.gguf", progress=False).folder)
    assert not hasattr(read.model.config, "quantization_config")
    assert not getattr(read.model, "is_quantized", False)
    assert read.model.generation_config.eos_token_id == 2
    assert read.tokenizer is not None
    assert read.tokenizer.chat_template == CHAT_TEMPLATE
    assert read.tokenizer.decode(read.tokenizer.encode("the end", add_special_tokens=False)) == "the end"
    assert len(read.tokenizer.encode("the", add_special_tokens=False)) == 1


def test_the_report_is_told_how_coarse_the_weights_were(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    (note,) = converted(tmp_path / "tiny.gguf", progress=False).notes
    assert note.startswith("weights were 4-bit (Q4_1) in the source file (tensors: 14 x Q4_1, 1 x Q8_0, 5 x F32)")


def test_a_file_of_the_same_name_in_the_working_folder_is_not_read_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    expected = write_tiny_gguf(tmp_path / "tiny.gguf", seed=1)
    write_tiny_gguf(tmp_path / "here" / "tiny.gguf", seed=2)
    monkeypatch.chdir(tmp_path / "here")
    model = read_folder(converted(Path("../tiny.gguf"), progress=False).folder).model
    assert torch.equal(model.model.norm.weight, expected["model.norm.weight"])


def test_the_second_use_needs_no_gguf_package_and_writes_nothing(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    folder = converted(tmp_path / "tiny.gguf", progress=False).folder
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    program = (
        "import sys; sys.modules['gguf'] = None\n"
        "from inference_pio.sources import open_model\n"
        "print(open_model(sys.argv[1], progress=False).folder)"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path / "tiny.gguf")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == str(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_without_the_gguf_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(gguf_header.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'inference-pio\[gguf\]'"):
        converted(tmp_path / "tiny.gguf", progress=False)


def test_a_damaged_copy_is_made_anew_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = write_tiny_gguf(tmp_path / "tiny.gguf")
    folder = converted(tmp_path / "tiny.gguf", progress=False).folder
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    again = converted(tmp_path / "tiny.gguf")
    assert "is damaged (model.safetensors has" in capsys.readouterr().err
    assert "was damaged" in again.notes[-1]
    norm = read_folder(again.folder).model.model.norm.weight
    assert torch.equal(norm, expected["model.norm.weight"])
    assert names(folder.parent) == [folder.name]


def test_a_copy_without_its_manifest_is_made_anew(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    folder = converted(tmp_path / "tiny.gguf", progress=False).folder
    (folder / manifest.FILE_NAME).unlink()
    converted(tmp_path / "tiny.gguf", progress=False)
    assert (folder / manifest.FILE_NAME).is_file()


def test_a_file_without_a_tokenizer_gives_a_model_without_one(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", tokenizer=False)
    read = read_folder(converted(tmp_path / "tiny.gguf", progress=False).folder)
    assert read.tokenizer is None
    assert "no tokenizer" in read.notes[-1]


def test_a_file_that_lacks_a_tensor_is_refused_rather_than_filled_with_random_numbers(
    tmp_path: Path, cache_of_its_own: Path
) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", leave_out="blk.1.ffn_up.weight")
    with pytest.raises(SourceError, match=r"no weights for model\.layers\.1\.mlp\.up_proj\.weight"):
        converted(tmp_path / "tiny.gguf", progress=False)
    assert names(cache_of_its_own / "gguf") == []


def test_a_truncated_file_is_named_and_nothing_is_cached(tmp_path: Path, cache_of_its_own: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path)
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(CorruptFile, match=r"tiny\.gguf is damaged or cut short \(it holds"):
        converted(path, progress=False)
    assert names(cache_of_its_own / "gguf") == []


def test_a_full_disk_while_converting_leaves_nothing(tmp_path: Path, cache_of_its_own: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    with disk_full_after(100_000), pytest.raises(DiskFull, match="no room to write"):
        converted(tmp_path / "tiny.gguf", progress=False)
    assert names(cache_of_its_own / "gguf") == []


def test_too_little_room_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(gguf, "_TOKENIZER_AND_CONFIG_BYTES", 1 << 70)
    with pytest.raises(DiskFull, match="MB free"):
        converted(tmp_path / "tiny.gguf", progress=False)


def test_a_cache_that_cannot_be_written_is_named_with_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "file").touch()
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file"))
    with pytest.raises(StorageError, match="set INFERENCE_PIO_CACHE to a folder"):
        converted(tmp_path / "tiny.gguf", progress=False)


def test_an_interrupted_conversion_leaves_nothing(
    tmp_path: Path, cache_of_its_own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")

    def interrupt(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf, "_require_same_weights", interrupt)
    with pytest.raises(KeyboardInterrupt):
        converted(tmp_path / "tiny.gguf", progress=False)
    assert names(cache_of_its_own / "gguf") == []


def test_a_missing_file_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"there is no file .*none\.gguf"):
        converted(tmp_path / "none.gguf", progress=False)
