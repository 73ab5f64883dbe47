from __future__ import annotations

import gc
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from inference_pio.undo import private_folder
from inference_pio.undo.journal import Journal
from inference_pio.undo.private_folder import sweep_dead, write_private
from inference_pio.undo.vault import Vault
from tests.undo.help import take_back
from tests.undo.test_vault import linears, parked_file


def test_only_the_user_can_read_what_is_parked(tmp_path: Path) -> None:
    model = linears()
    journal = Journal(model, Vault("disk", tmp_path))
    with journal.step("replace"):
        journal.replace(model[0], nn.Identity())
    file = parked_file(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_ctrl_c_while_a_file_is_made_leaves_it_neither_open_nor_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = os.open

    def pressed(*given: Any) -> int:
        descriptor = made(*given)
        signal.raise_signal(signal.SIGINT)
        return descriptor

    before = psutil.Process().num_fds()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", pressed)
        with pytest.raises(KeyboardInterrupt):
            write_private(tmp_path / "a.bin", torch.zeros(4, dtype=torch.uint8))
    assert psutil.Process().num_fds() == before
    assert list(tmp_path.iterdir()) == []


def test_the_file_goes_with_the_undo_and_the_folder_with_the_vault(tmp_path: Path) -> None:
    model = linears()
    journal = Journal(model, Vault("disk", tmp_path))
    with journal.step("replace") as frame:
        journal.replace(model[0], nn.Identity())
    file = parked_file(tmp_path)
    take_back(journal, frame)
    assert not file.exists()
    journal.vault = Vault("host")
    gc.collect()
    assert list(tmp_path.iterdir()) == []


PARKING = """
import os, sys
from pathlib import Path
from torch import nn
from inference_pio.undo.journal import Journal
from inference_pio.undo.vault import Vault
model = nn.Sequential(nn.Linear(4, 4))
journal = Journal(model, Vault("disk", Path(sys.argv[1])))
with journal.step("replace"):
    journal.replace(model[0], nn.Identity())
print(*Path(sys.argv[1]).iterdir(), flush=True)
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, env=environment)


def test_nothing_is_left_when_the_process_ends(tmp_path: Path) -> None:
    done = run(PARKING, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "undo-"))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept_by_the_next_one(tmp_path: Path) -> None:
    done = run(PARKING + "os.kill(os.getpid(), 9)", tmp_path)
    assert done.returncode == -9
    (left,) = tmp_path.iterdir()
    model = linears()
    journal = Journal(model, Vault("disk", tmp_path))
    with journal.step("replace"):
        journal.replace(model[0], nn.Identity())
    assert not left.exists()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_forked_child_leaves_the_folder_to_its_parent(tmp_path: Path) -> None:
    forking = PARKING + (
        "child = os.fork()\n"
        "if not child:\n"
        "    import gc\n"
        "    del journal, model\n"
        "    gc.collect()\n"
        "    sys.exit(0)\n"
        "os.waitpid(child, 0)\n"
        "print(len(list(Path(sys.argv[1]).rglob('*.bin'))))\n"
    )
    done = run(forking, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "2", "weight and bias are still there"
    assert list(tmp_path.iterdir()) == []


def dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_only_folders_of_this_machines_dead_are_swept(tmp_path: Path) -> None:
    host, dead = private_folder._host(), dead_pid()
    names = {
        "dead": f"undo-{dead}-{host}.abc",
        "alive": f"undo-{os.getpid()}-{host}.abc",
        "elsewhere": f"undo-{dead}-{host}x.abc",
        "locked": f"undo-{dead}-{host}.locked",
        "just made": f"undo-{dead}-{host}.new",
        "not ours": "undo-the-war",
        "no number": f"undo-99999999999999999999-{host}.abc",
    }
    folders = {what: tmp_path / name for what, name in names.items()}
    for what, folder in folders.items():
        folder.mkdir()
        if what != "just made":
            (folder / private_folder.LOCK).touch()
    lock = private_folder._lock(folders["locked"])
    sweep_dead(tmp_path)
    assert [what for what, folder in folders.items() if not folder.exists()] == ["dead"]
    assert lock is not None
    os.close(lock)
    long_ago = time.time() - 2 * private_folder.NEW_S
    os.utime(folders["just made"], (long_ago, long_ago))
    sweep_dead(tmp_path)
    assert [what for what, folder in folders.items() if not folder.exists()] == ["dead", "locked", "just made"]


def test_a_link_that_looks_like_a_dead_folder_leads_nowhere(tmp_path: Path) -> None:
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / private_folder.LOCK).touch()
    parent = tmp_path / "cache"
    parent.mkdir()
    (parent / f"undo-{dead_pid()}-{private_folder._host()}.abc").symlink_to(treasure)
    sweep_dead(parent)
    assert (treasure / private_folder.LOCK).exists()
