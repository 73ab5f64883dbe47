from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from inference_pio.partials import partial_beside, sweep_partials

_EIGHT_DAYS_S = 8 * 24 * 3600


def left_by(process: int, path: Path) -> Path:
    fresh = partial_beside(path)
    return fresh.with_name(fresh.name.replace(f".{os.getpid()}.", f".{process}."))


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_dead_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    own, foreign_name, finished = partial_beside(tmp_path / "model"), tmp_path / "x.partial", tmp_path / "model"
    dead_file, dead_folder = left_by(dead_process(), tmp_path / "model"), left_by(dead_process(), tmp_path / "other")
    dead_folder.mkdir()
    (dead_folder / "half").touch()
    for path in (own, foreign_name, finished, dead_file):
        path.touch()
    assert set(sweep_partials(tmp_path)) == {dead_file, dead_folder}
    assert set(tmp_path.iterdir()) == {own, foreign_name, finished}


def test_another_machines_unfinished_work_is_left_alone_for_a_week(tmp_path: Path) -> None:
    fresh, old = tmp_path / ".a.elsewhere.1.abcd.partial", tmp_path / ".b.elsewhere.1.abcd.partial"
    fresh.touch()
    old.touch()
    long_ago = old.stat().st_mtime - _EIGHT_DAYS_S
    os.utime(old, (long_ago, long_ago))
    assert sweep_partials(tmp_path) == [old]
    assert fresh.exists()


def test_two_names_for_one_path_differ_and_lie_beside_it(tmp_path: Path) -> None:
    first, second = partial_beside(tmp_path / "model"), partial_beside(tmp_path / "model")
    assert first != second
    assert first.parent == second.parent == tmp_path
