from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from inference_pio.errors import DiskFull, SourceError
from inference_pio.sources import hub
from inference_pio.sources.hub import hub_folder


@pytest.fixture(autouse=True)
def offline_with_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_an_unreachable_hub_tells_what_works_without_it() -> None:
    with pytest.raises(SourceError, match=r"no folder 'owner/model', and the hub cannot be reached .* or 'demo'"):
        hub_folder("owner/model", progress=False)


@pytest.mark.parametrize("name", ["a/b/c", "two words", "-dash"])
def test_a_word_that_is_no_id_is_told(name: str) -> None:
    with pytest.raises(SourceError, match=f"no folder '{name}', and a hub id looks otherwise"):
        hub_folder(name, progress=False)


def test_a_model_in_the_hubs_own_cache_is_found_without_network(offline_with_an_empty_cache: Path) -> None:
    kept = offline_with_an_empty_cache / "models--owner--model"
    snapshot = kept / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("a" * 40)
    assert hub_folder("owner/model", progress=False) == snapshot


def test_a_full_disk_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **options: object) -> None:
        raise OSError(28, "No space left on device", "blob")

    monkeypatch.setattr(hub, "snapshot_download", full)
    with pytest.raises(DiskFull, match="no room to write blob"):
        hub_folder("owner/model", progress=False)


def test_python_files_come_along_only_when_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def note(model_id: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", note)
    hub_folder("owner/model", progress=False)
    hub_folder("owner/model", progress=False, trust_remote_code=True)
    assert ["*.py" in patterns for patterns in asked] == [False, True]
