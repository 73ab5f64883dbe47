"""A private folder: files of this process alone, gone with it, swept by the next one if it was killed."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import tempfile
import time
import weakref
from contextlib import ExitStack
from pathlib import Path

import psutil
import torch

from inference_pio.errors import DiskFull, StorageError
from inference_pio.undo.checkpoint import TensorInFile
from inference_pio.undo.interrupts import held_back

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

CHUNK_BYTES = 16 * 2**20
NEW_S = 60.0
LOCK = "lock"
_FOLDER = re.compile(r"undo-(?P<pid>\d{1,9})-(?P<host>\w+)\.[^.]+")


class PrivateFolder:
    """A folder of this process alone; it goes when neither its vault nor anything parked in it is left."""

    def __init__(self, parent: Path) -> None:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            sweep_dead(parent)
            self.path = Path(tempfile.mkdtemp(prefix=f"undo-{os.getpid()}-{_host()}.", dir=parent))
            lock = _lock(self.path)
        except OSError as error:
            raise StorageError(
                f"cannot write originals to {parent}: {error.strerror}. "
                "Set INFERENCE_PIO_CACHE to a writable folder, or use keep_originals='host'."
            ) from error
        weakref.finalize(self, _remove, self.path, lock, os.getpid())

    def free_bytes(self) -> int:
        try:
            return shutil.disk_usage(self.path).free
        except OSError as error:
            raise StorageError(
                f"the folder for originals, {self.path}, is gone ({error.strerror}): reset the model, if it still can "
                "be, or load it anew."
            ) from error

    def read(self, file: Path, nbytes: int) -> torch.Tensor:
        """The bytes of a file here; whoever may still read keeps the folder."""
        return TensorInFile(file, "an original", 0, nbytes, torch.uint8, (nbytes,)).read()


def write_private(file: Path, raw: torch.Tensor) -> None:
    data = raw.numpy().data
    try:
        with ExitStack() as opened:
            with held_back():  # a Ctrl-C in between would leave the file open for good
                descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                stream = opened.enter_context(os.fdopen(descriptor, "wb"))
            for start in range(0, len(data), CHUNK_BYTES):
                stream.write(data[start : start + CHUNK_BYTES])
    except OSError as error:
        file.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(
                f"the disk filled up while parking originals in {file.parent}. "
                "Free some space, set INFERENCE_PIO_CACHE to another disk, or use keep_originals='host'."
            ) from error
        raise StorageError(f"cannot park originals in {file}: {error.strerror}.") from error
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def _remove(folder: Path, lock: int | None, owner: int) -> None:
    """Remove a vault's folder; a forked child, which has a copy of the vault, must leave it to its parent."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)


def sweep_dead(parent: Path) -> None:
    """Remove the folders that processes of this machine which no longer run have left behind."""
    for folder in parent.glob("undo-*-*"):
        named = _FOLDER.fullmatch(folder.name)
        if named is None or named["host"] != _host() or psutil.pid_exists(int(named["pid"])):
            continue
        if not _is_locked(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", platform.node()) or "unknown"


def _lock(folder: Path) -> int | None:
    """Hold a lock in a folder: in a container that shares it, another process's number says nothing."""
    if fcntl is None:
        return None
    descriptor = os.open(folder / LOCK, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    return descriptor


def _is_locked(folder: Path) -> bool:
    if fcntl is None:
        return False
    try:
        descriptor = os.open(folder / LOCK, os.O_WRONLY)
    except OSError:
        return time.time() - folder.stat().st_mtime < NEW_S  # it may be about to be locked
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
