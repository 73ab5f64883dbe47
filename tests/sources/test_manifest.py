from __future__ import annotations

import os
from pathlib import Path

import pytest

from inference_pio.sources.manifest import FILE_NAME, Manifest, damage, read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_bytes(b"0123456789")
    (tmp_path / "config").write_bytes(b"{}")
    return tmp_path


def written(folder: Path) -> Manifest:
    return write_manifest(folder, source_name="a.gguf", source_sha256="ab", tensor_types={"F32": 1}, notes=("so",))


def test_a_manifest_is_read_as_it_was_written(folder: Path) -> None:
    manifest = written(folder)
    assert read_manifest(folder) == manifest
    assert sorted(manifest.files) == ["config", "weights"]
    assert damage(folder, manifest) is None


def test_every_kind_of_damage_is_told(folder: Path) -> None:
    manifest, weights = written(folder), folder / "weights"
    weights.write_bytes(b"0123456780")
    assert damage(folder, manifest) == "weights was changed"
    weights.write_bytes(b"01234")
    assert damage(folder, manifest) == "weights has 5 bytes, not 10"
    weights.unlink()
    assert damage(folder, manifest) == "weights is missing"


def test_a_copied_folder_with_other_times_is_whole(folder: Path) -> None:
    manifest = written(folder)
    os.utime(folder / "weights", (1, 1))
    assert damage(folder, manifest) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"notes": [], "unknown": 1}', "\x00"])
def test_a_manifest_that_cannot_be_read_is_none(folder: Path, text: str) -> None:
    (folder / FILE_NAME).write_text(text)
    assert read_manifest(folder) is None


def test_a_manifest_of_another_format_is_none(folder: Path) -> None:
    written(folder)
    path = folder / FILE_NAME
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    assert read_manifest(folder) is None
