from __future__ import annotations

import errno
import os
import resource
import shutil
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from inference_pio import files
from inference_pio.errors import DiskFull, StorageError


@contextmanager
def disk_full_after(size_bytes: int) -> Iterator[None]:
    """No file may grow past `size_bytes`: the nearest thing to a full disk that a test can have for itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "note.json"
    files.write_atomically(target, "old")
    files.write_atomically(target, b"\x00new")
    assert target.read_bytes() == b"\x00new"
    assert names(target.parent) == ["note.json"]


def test_a_full_disk_leaves_the_old_file_and_nothing_partial(tmp_path: Path) -> None:
    target = tmp_path / "note"
    files.write_atomically(target, "old")
    with disk_full_after(1000), pytest.raises(DiskFull, match="note"):
        files.write_atomically(target, b"x" * 5000)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["note"]


def test_a_full_disk_is_told_when_safetensors_meets_it(tmp_path: Path) -> None:
    with disk_full_after(1000), pytest.raises(DiskFull, match="Free some room"), files.storage_errors(tmp_path):
        save_file({"weight": torch.zeros(5000)}, tmp_path / "model.safetensors")


def test_a_place_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="choose a folder that you may write to"):
        files.write_atomically(tmp_path / "file" / "note", "text")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_forbidden_place_is_a_storage_error_that_is_not_a_full_disk(number: int) -> None:
    with pytest.raises(StorageError, match=os.strerror(number)) as caught, files.storage_errors("place"):
        raise OSError(number, os.strerror(number))
    assert not isinstance(caught.value, DiskFull)


def test_an_error_that_no_disk_made_passes_untouched() -> None:
    with pytest.raises(ValueError, match="mine"), files.storage_errors("place"):
        raise ValueError("mine")


def folder_holding(folder: Path, text: str) -> Path:
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text(text)
    return folder


def test_a_built_folder_becomes_the_final_one(tmp_path: Path) -> None:
    files.replace_folder_atomically(folder_holding(tmp_path / "built", "new"), tmp_path / "final")
    assert (tmp_path / "final" / "inner" / "file").read_text() == "new"
    assert names(tmp_path) == ["final"]


@pytest.mark.parametrize("in_one_step", [True, False], ids=["exchanged", "renamed twice"])
def test_an_older_folder_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_one_step: bool) -> None:
    if not in_one_step:
        monkeypatch.setattr(files, "_swap_in_one_step", lambda first, second: False)
    final = folder_holding(tmp_path / "final", "old")
    (final / "only in the old one").touch()
    files.replace_folder_atomically(folder_holding(tmp_path / "built", "new"), final)
    assert names(final) == ["inner"]
    assert (final / "inner" / "file").read_text() == "new"
    assert names(tmp_path) == ["final"]


def test_a_replacement_that_fails_leaves_the_older_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_swap_in_one_step", lambda first, second: False)
    final = folder_holding(tmp_path / "final", "old")
    built = folder_holding(tmp_path / "built", "new")
    rename = Path.rename

    def refuse_the_new_one(path: Path, target: Path) -> Path:
        if path == built:
            raise OSError(errno.EIO, "broken")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new_one)
    with pytest.raises(StorageError, match="final"):
        files.replace_folder_atomically(built, final)
    assert (final / "inner" / "file").read_text() == "old"
    assert names(tmp_path) == ["built", "final"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    real = folder_holding(tmp_path / "real", "old")
    (tmp_path / "final").symlink_to(real)
    files.replace_folder_atomically(folder_holding(tmp_path / "built", "new"), tmp_path / "final")
    assert (tmp_path / "final").is_symlink()
    assert (real / "inner" / "file").read_text() == "new"


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "final").write_text("a file")
    with pytest.raises(StorageError, match="final"):
        files.replace_folder_atomically(folder_holding(tmp_path / "built", "new"), tmp_path / "final")
    assert (tmp_path / "final").read_text() == "a file"


def test_a_partial_folder_is_gone_after_an_error(tmp_path: Path) -> None:
    def interrupted() -> None:
        with files.partial_folder(tmp_path / "final") as folder:
            (folder / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == []


def test_missing_room_is_told_before_writing_with_both_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")(100, 60, 40_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    files.require_free_bytes(tmp_path / "not" / "there", 40_000_000)
    with pytest.raises(DiskFull, match="needs 500 MB and its disk has 40 MB free"):
        files.require_free_bytes(tmp_path / "not" / "there", 500_000_000)


def test_the_sum_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_of(tmp_path / "file") == expected


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        files.write_atomically(pipe, "through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert names(tmp_path) == ["pipe"]


def test_a_link_stays_a_link_to_the_file_that_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "shelf").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "shelf" / "note")
    for text in ("new", "newer"):
        files.write_atomically(link, text)
        assert link.is_symlink()
        assert (tmp_path / "shelf" / "note").read_text() == text
    assert names(tmp_path / "shelf") == ["note"]
