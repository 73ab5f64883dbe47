"""Weights lie where only their user may put them; links, foreign folders and open ones are refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from inference_pio.errors import StorageError
from inference_pio.streaming.private_root import check_own, private_root


def test_a_folder_is_made_for_its_user_alone(tmp_path: Path) -> None:
    folder = private_root(tmp_path / "deep" / "weights")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert private_root(folder) == folder


def test_a_folder_that_others_may_read_but_not_write_will_do(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert private_root(tmp_path) == tmp_path
    with pytest.raises(StorageError, match="used by others"):
        check_own(tmp_path)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775, 0o702])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(StorageError, match=rf"used by others \(mode {mode:o}\).*chmod 700"):
        private_root(tmp_path)


def test_a_link_is_refused_with_the_place_that_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StorageError, match=r"is a link.*real"):
        private_root(tmp_path / "link")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(StorageError, match="is a link"):
        private_root(tmp_path / "nowhere")


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="not a folder"):
        private_root(tmp_path / "file")
    with pytest.raises(StorageError, match="cannot write"):
        private_root(tmp_path / "file" / "below")


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(StorageError, match="belongs to another user"):
        private_root(tmp_path)
