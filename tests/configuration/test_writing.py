from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inference_pio.configuration import GlobalOptimizationProfile
from inference_pio.configuration.reading import read_document
from inference_pio.configuration.writing import as_yaml, check_path, document_of, write_document
from inference_pio.errors import InvalidSetting, StorageError

TRAPS: dict[str, Any] = {
    "words": ["yes", "no", "on", "null", "~", "1", "1e3", "2024-01-01", "", " a ", "a: b", "#", "ü€😀", "\x00\u2028"],
    "numbers": [0, -1, 2**62, 1e20, 1e-7, 0.1, -0.0],
    "rest": [True, None, {}, [], {"a": {"b": [{}]}}],
}


@pytest.mark.parametrize("name", ["a.yaml", "a.yml", "a.json", "A.JSON"])
def test_what_is_written_reads_back_the_same(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / name
    write_document(path, TRAPS)
    assert read_document(path) == TRAPS


def test_what_stands_at_two_places_is_written_out() -> None:
    shared = {"a": 1}
    assert "&" not in as_yaml({"one": shared, "two": shared})


def test_only_what_was_set_is_written() -> None:
    profile = GlobalOptimizationProfile(name="mine", default_settings={"one": {}})
    assert document_of(profile) == {"name": "mine", "default_settings": {"one": {}}}


@pytest.mark.parametrize("name", ["a.txt", "a", "yaml", ".yaml"])
def test_another_ending_is_refused_and_nothing_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"must end in \.yaml, \.yml or \.json"):
        write_document(tmp_path / name, {})
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        write_document(tmp_path / "file" / "a.yaml", {})


def test_a_path_is_a_word_or_a_path() -> None:
    assert check_path("a.yaml") == Path("a.yaml")
    with pytest.raises(InvalidSetting, match="not 3"):
        check_path(3)


def test_a_word_that_looks_like_a_number_stays_a_word(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    write_document(path, {"word": "1e-3", "number": 1e-3})
    assert read_document(path) == {"word": "1e-3", "number": 0.001}
