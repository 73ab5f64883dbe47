"""A store is whole or not there: whatever kills its writer, whoever else writes, whatever lay in its place."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from inference_pio.errors import DiskFull, StorageError, StreamError
from inference_pio.streaming import store as module
from inference_pio.streaming.reader import Reader
from inference_pio.streaming.store import MANIFEST, Content, Store, open_store, sweep
from tests.streaming.help import flip, random_bytes, run

SIZES = (1, 4096, 5000)


def contents(seed: int = 0, files: int = 2) -> list[Content]:
    return [
        Content(f"layer-{number}", tuple(random_bytes(size, seed * 100 + number * 10 + size) for size in SIZES))
        for number in range(files)
    ]


def check(store: Store, wanted: list[Content]) -> None:
    reader = Reader(1, 2**20, verify="always")
    for file, content in zip(store.pieces, wanted, strict=True):
        for pieces, raw in zip(file, content.stretches, strict=True):
            assert all(piece.offset % 4096 == 0 for piece in pieces[:1])
            target = torch.zeros_like(raw)
            reader.start(pieces, target).wait()
            assert torch.equal(target, raw)
    reader.close()


def test_what_is_stored_is_read_back_and_goes_when_it_is_closed(tmp_path: Path) -> None:
    files = psutil.Process().num_fds()
    store = open_store(tmp_path / "root", contents())
    check(store, contents())
    assert store.written_bytes == 2 * (4096 + 4096 + 8192)
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in store.folder.glob("layer-*")} == {0o600}
    store.close()
    store.close()
    assert list((tmp_path / "root").iterdir()) == []
    assert psutil.Process().num_fds() == files


def test_a_store_that_nobody_has_any_more_goes(tmp_path: Path) -> None:
    store = open_store(tmp_path / "root", contents())
    del store
    gc.collect()
    assert list((tmp_path / "root").iterdir()) == []


def test_two_readers_of_the_same_weights_share_one_store(tmp_path: Path) -> None:
    first, second = (open_store(tmp_path / "root", contents()) for _ in range(2))
    assert second.written_bytes == 0
    assert first.folder == second.folder
    first.close()
    check(second, contents())
    second.close()
    assert list((tmp_path / "root").iterdir()) == []


def test_other_weights_have_another_store(tmp_path: Path) -> None:
    first, second = (open_store(tmp_path / "root", contents(seed)) for seed in range(2))
    assert first.folder != second.folder
    check(first, contents(0))
    check(second, contents(1))
    first.close()
    second.close()


@pytest.mark.parametrize("damage", ["manifest of another model", "no manifest", "a file cut short", "a file missing"])
def test_what_lies_in_a_stores_place_and_is_not_it_is_written_anew(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "_remove", lambda *given: None)  # as if the process had been killed
        store = open_store(tmp_path / "root", contents())
        store.close()
        patch.setattr(module, "sweep", lambda root: [])
        folder = store.folder
        if damage == "manifest of another model":
            (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes().replace(b"store 1", b"store 0"))
        elif damage == "no manifest":
            (folder / MANIFEST).unlink()
        elif damage == "a file cut short":
            os.truncate(folder / "layer-1", 10)
        else:
            (folder / "layer-0").unlink()
        again = open_store(tmp_path / "root", contents())
    assert again.folder == folder
    assert again.written_bytes > 0
    check(again, contents())
    again.close()


def test_a_flipped_byte_in_a_store_that_is_used_again_is_told(tmp_path: Path) -> None:
    first = open_store(tmp_path / "root", contents())
    flip(first.folder / "layer-1", 4096)
    second = open_store(tmp_path / "root", contents())
    with pytest.raises(StreamError, match="damaged"):
        check(second, contents())
    first.close()
    second.close()


STEPS = {os: ("open", "posix_fallocate", "ftruncate", "pwrite", "fsync", "close"), Path: ("mkdir", "replace")}


def write_and_die(root: Path, fatal: int) -> bool:
    """Let a forked child write a store and be killed at its `fatal`-th step; whether it came to the end before."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        return os.WTERMSIG(status) == signal.SIGTERM
    steps = 0

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*given, **named)

        return call

    for owner, names in STEPS.items():
        for name in names:
            setattr(owner, name, dying(getattr(owner, name)))
    store = open_store(root, contents())
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError(store)


FORKS = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork beside threads, from Python 3.12 on


@FORKS
@pytest.mark.parametrize("swept", [True, False])
def test_killed_at_any_step_of_writing_it_leaves_nothing_that_is_taken_for_a_store(
    tmp_path: Path, swept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    if not swept:
        monkeypatch.setattr(module, "sweep", lambda root: [])
    for fatal in range(1, 60):
        ended = write_and_die(root, fatal)
        store = open_store(root, contents())
        assert store.written_bytes > 0 or not swept
        check(store, contents())
        store.close()
        assert list(root.iterdir()) == []
        if ended:
            break
    else:
        pytest.fail("the process never came to its end")
    assert fatal > 15


@FORKS
def test_leftovers_of_dead_processes_are_swept_and_living_ones_are_not(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert write_and_die(root, 0)
    assert len(list(root.glob("*.lock"))) == 1
    living = open_store(tmp_path / "root", contents(seed=1))
    assert [path.name for path in root.glob("*.lock")] == [f"{living.folder.name}.lock"]
    assert sweep(root) == []
    check(living, contents(seed=1))
    living.close()


@FORKS
def test_a_link_in_the_place_of_a_dead_store_is_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert write_and_die(root, 0)
    folder = next(root.glob("*.lock")).with_suffix("")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "precious")
    assert sweep(root) == [folder]
    assert (tmp_path / "precious" / "file").read_text() == "kept"
    assert list(root.iterdir()) == []


def test_a_folder_that_others_can_use_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "root", contents())
    store.folder.chmod(0o755)
    with pytest.raises(StorageError, match="used by others"):
        open_store(tmp_path / "root", contents())
    store.close()


def test_too_little_room_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPARE_BYTES", 1 << 60)
    with pytest.raises(DiskFull, match="free some room"):
        open_store(tmp_path / "root", contents())
    assert list((tmp_path / "root").iterdir()) == []


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_leaves_no_store(
    tmp_path: Path, call: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> None:
        raise OSError(number, os.strerror(number))

    files = psutil.Process().num_fds()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, broken)
        with pytest.raises(DiskFull if number == errno.ENOSPC else StorageError):
            open_store(tmp_path / "root", contents())
    assert list((tmp_path / "root").iterdir()) == []
    assert psutil.Process().num_fds() == files
    store = open_store(tmp_path / "root", contents())
    check(store, contents())
    store.close()


LIMITED = """
import resource, signal, sys
from pathlib import Path
from inference_pio.errors import DiskFull
from inference_pio.streaming.store import open_store
from tests.streaming.test_store import contents
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
try:
    open_store(Path(sys.argv[1]), contents())
except DiskFull:
    print("told", *Path(sys.argv[1]).glob("*/*"))
"""


def test_a_real_limit_of_the_system_is_told_as_a_full_disk(tmp_path: Path) -> None:
    ended = run(LIMITED, tmp_path / "root")
    assert ended.stdout.strip() == "told", ended.stderr


def build(root: Path, seed: int, ready: Any, done: Any) -> None:
    ready.wait()
    store = open_store(root, contents(seed, files=8))
    check(store, contents(seed, files=8))
    done.wait()
    store.close()


def test_processes_that_write_the_same_store_at_once_all_read_it_whole(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Barrier(3), context.Barrier(3)
    processes = [context.Process(target=build, args=(tmp_path / "root", 0, ready, done)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert list((tmp_path / "root").iterdir()) == []


def test_what_a_user_keeps_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    kept = {"uv.lock": "a", "poetry.lock": "b", "Cargo.lock": "c"}
    for name, text in kept.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).with_suffix("").mkdir()
        ((tmp_path / name).with_suffix("") / "data.txt").write_text(text)
    open_store(tmp_path, contents()).close()
    sweep(tmp_path)
    for name, text in kept.items():
        assert (tmp_path / name).read_text() == text
        assert ((tmp_path / name).with_suffix("") / "data.txt").read_text() == text
