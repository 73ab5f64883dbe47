"""Any stretch of a file is read, past the page cache and through it; a file that is cut short is an error."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import psutil
import pytest

from inference_pio.errors import StreamError
from inference_pio.streaming import open_file as module
from inference_pio.streaming.open_file import OpenFile, slab_for

CONTENT = np.random.default_rng(0).integers(0, 256, 50_001).astype(np.uint8)
DIRECT = pytest.mark.parametrize("direct", [True, False])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "weights"
    file.write_bytes(CONTENT.tobytes())
    return file


def read(file: OpenFile, offset: int, nbytes: int) -> np.ndarray:
    target = np.zeros(nbytes, np.uint8)
    file.read(offset, target, slab_for(nbytes))
    return target


@DIRECT
@pytest.mark.parametrize("offset", [0, 1, 4095, 4096, 8190, 40_000])
@pytest.mark.parametrize("nbytes", [0, 1, 4096, 4097, 10_001])
def test_any_stretch_is_read_as_it_stands(path: Path, direct: bool, offset: int, nbytes: int) -> None:
    file = OpenFile(path, direct=direct)
    assert np.array_equal(read(file, offset, nbytes), CONTENT[offset : offset + nbytes])
    file.close()


@DIRECT
@pytest.mark.parametrize("left", [0, 1, 4096, 20_000, 50_000])
def test_a_file_cut_short_while_it_is_open_is_an_error(path: Path, direct: bool, left: int) -> None:
    file = OpenFile(path, direct=direct)
    os.truncate(path, left)
    with pytest.raises(StreamError, match="cut short"):
        read(file, 0, len(CONTENT))
    assert np.array_equal(read(file, 0, left), CONTENT[:left])
    file.close()


@DIRECT
def test_a_name_that_goes_leaves_an_open_file_readable(path: Path, direct: bool) -> None:
    file = OpenFile(path, direct=direct)
    path.unlink()
    assert np.array_equal(read(file, 5, 100), CONTENT[5:105])
    file.close()


def test_writing_changes_the_stamp_and_reading_does_not(path: Path) -> None:
    file = OpenFile(path)
    before = file.stamp
    read(file, 0, 10)
    assert file.stamp == before
    path.write_bytes(b"other")
    assert file.stamp != before
    file.close()


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="put the file back"):
        OpenFile(tmp_path / "nothing")


def test_a_system_that_refuses_direct_reads_is_asked_for_plain_ones(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(file: int, buffers: list[memoryview], offset: int) -> int:
        raise OSError(22, "Invalid argument")

    files = psutil.Process().num_fds()
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "preadv", refused)
        file = OpenFile(path)
    assert not file.direct
    assert psutil.Process().num_fds() == files + 1
    assert np.array_equal(read(file, 3, 7), CONTENT[3:10])
    file.close()
    assert psutil.Process().num_fds() == files


def test_a_disk_that_fails_is_told_with_the_place(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = OpenFile(path)

    def broken(*given: object) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "preadv", broken)
        with pytest.raises(StreamError, match=r"weights at 9 \(Input/output error\)"):
            read(file, 9, 4)
    file.close()
