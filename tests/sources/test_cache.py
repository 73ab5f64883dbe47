from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from inference_pio.errors import StorageError
from inference_pio.sources.cache import VARIABLE, cache_folder, cache_room


def test_the_variable_decides_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "chosen"))
    assert cache_folder() == tmp_path / "chosen"
    assert not (tmp_path / "chosen").exists()


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/given"}, "/given/inference-pio"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "~/.cache/inference-pio"),
        ("linux", {}, "~/.cache/inference-pio"),
        ("darwin", {}, "~/Library/Caches/inference-pio"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/inference-pio"),
        ("win32", {}, "~/AppData/Local/inference-pio"),
    ],
)
def test_each_system_has_its_usual_place(
    monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], expected: str
) -> None:
    for name in (VARIABLE, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_folder() == Path(expected).expanduser()


def test_a_room_is_made_and_swept_of_dead_work(cache_of_its_own: Path) -> None:
    room = cache_room("gguf")
    abandoned = room / f".key.{os.uname().nodename.replace('.', '-')}.999999999.abcd.partial"
    abandoned.mkdir()
    assert cache_room("gguf") == room == cache_of_its_own / "gguf"
    assert list(room.iterdir()) == []


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_cache_that_cannot_be_written_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, below: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file" / below))
    with pytest.raises(StorageError, match=f"cannot write the cache folder .*: set {VARIABLE}"):
        cache_room("gguf")
