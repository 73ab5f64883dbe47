"""Readers share, a writer is alone, a removed lock excludes nobody, and a killed process lets go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from inference_pio.errors import StorageError
from inference_pio.streaming.store_lock import StoreLock

HOLD = """
import sys, time
from pathlib import Path
from inference_pio.streaming.store_lock import StoreLock
lock = StoreLock(Path(sys.argv[1]))
assert lock.exclusive()
print("held", flush=True)
time.sleep(60)
"""


def test_readers_share_and_a_writer_is_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.lock"
    first, second = StoreLock(path), StoreLock(path)
    assert first.shared(0)
    assert second.shared(0)
    assert not first.exclusive()
    second.close()
    assert first.exclusive()
    third = StoreLock(path)
    with pytest.raises(StorageError, match="another process has been writing"):
        third.shared(0.1)
    first.close()
    assert third.shared(0)
    third.close()
    assert path.stat().st_mode & 0o077 == 0


def test_a_lock_that_was_removed_is_none(tmp_path: Path) -> None:
    path = tmp_path / "store.lock"
    lock = StoreLock(path)
    path.unlink()
    assert not lock.shared(0)
    assert not lock.exclusive()
    other = StoreLock(path)
    assert not lock.shared(0)
    assert other.exclusive()
    lock.close()
    other.close()


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "store.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"store\.lock"):
        StoreLock(tmp_path / "store.lock")
    assert not (tmp_path / "elsewhere").exists()


def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "store.lock"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True, env=environment
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        lock = StoreLock(path)
        assert not lock.exclusive()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert lock.exclusive()
    lock.close()
