"""Writing so that a file or folder is either whole or not there: written beside, synced, renamed.

Every failure of a disk becomes `DiskFull` or `StorageError`, and nothing partial stays behind. What a killed process
leaves, `partials.py` can tell from work under way.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inference_pio.errors import DiskFull, StorageError
from inference_pio.partials import partial_beside

_NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # how the safetensors library tells what the system said


def write_atomically(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Put `data` at `path` (text as UTF-8), replacing what is there; the folder is made when missing.

    A link stays one: the file that it leads to is replaced. A device or a pipe is written to, never replaced.

    Raises `DiskFull` or `StorageError`; then the old file is untouched.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "deep" / "note.txt"
    >>> write_atomically(target, "whole or not there")
    >>> target.read_text(), len(list(target.parent.iterdir()))
    ('whole or not there', 1)
    """
    path = Path(path)
    raw = data.encode("utf-8") if isinstance(data, str) else data
    with storage_errors(path):
        if is_stream(path):
            with path.open("wb") as stream:
                stream.write(raw)
            return
        path = path.resolve() if path.is_symlink() else path
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_beside(path)
        try:
            with partial.open("xb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        _sync_folder(path.parent)


def is_stream(path: Path) -> bool:
    """Whether a path leads to a device, a pipe or a socket: a rename over one would destroy it for all who use it.

    >>> is_stream(Path("/dev/null")), is_stream(Path("/nowhere"))
    (True, False)
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder lies at a path; none does where the system takes no such name (too long, a zero byte in it).

    >>> is_folder("/"), is_folder(300 * "x")
    (True, False)
    """
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def replace_folder_atomically(built: str | os.PathLike[str], final: str | os.PathLike[str]) -> None:
    """Sync all of `built` and rename it to `final`; an older `final` is exchanged for it, then deleted.

    Both must lie on one file system. Raises `DiskFull` or `StorageError`; then an older `final` is as it was.
    """
    built, final = Path(built), Path(final)
    if final.is_symlink():
        final = final.resolve()
    with storage_errors(final):
        _sync_tree(built)
        try:
            built.rename(final)
        except OSError:  # something lies there; asked afterwards, since another process may just have put it
            if not final.is_dir():
                raise
            _exchange(built, final)
        _sync_folder(final.parent)


@contextmanager
def partial_folder(final: str | os.PathLike[str]) -> Iterator[Path]:
    """A new folder beside `final` to build it in; whatever is left of it at the end is deleted."""
    folder = partial_beside(final)
    with storage_errors(final):
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_free_bytes(folder: str | os.PathLike[str], need_bytes: int) -> None:
    """Raise `DiskFull` unless the disk under `folder` (which may not exist yet) has `need_bytes` free.

    >>> require_free_bytes("/", 1 << 80)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    inference_pio.errors.DiskFull: ...
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < need_bytes:
        raise DiskFull(
            f"{folder} needs {need_bytes / 1e6:,.0f} MB and its disk has {free_bytes / 1e6:,.0f} MB free: "
            "free some room there or choose a folder on another disk."
        )


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def storage_errors(place: str | os.PathLike[str]) -> Iterator[None]:
    """Tell a failed write at `place` as `DiskFull` or `StorageError`. Keep the block to writing."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        number = _system_error_number(error)
        if number in _NO_ROOM:
            raise DiskFull(
                f"no room to write {place} ({os.strerror(number or 0)}). "
                "Free some room there or choose a folder on another disk."
            ) from error
        if number is not None:
            raise StorageError(
                f"cannot write {place} ({os.strerror(number)}): choose a folder that you may write to."
            ) from error
        raise


def _system_error_number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    found = _RUST_ERROR.search(str(error))
    return int(found.group(1)) if found else None


def _exchange(built: Path, final: Path) -> None:
    """Swap two folders and delete the old one: in one step where the system can, in two renames elsewhere."""
    if not _swap_in_one_step(built, final):
        aside = partial_beside(final)
        final.rename(aside)
        try:
            built.rename(final)
        except BaseException:
            aside.rename(final)
            raise
        built = aside
    shutil.rmtree(built, ignore_errors=True)


def _swap_in_one_step(first: Path, second: Path) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # a C library older than 2.28, or musl
        return False
    at_cwd, exchange = -100, 2
    return bool(renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), exchange) == 0)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name), os.O_RDONLY if os.name == "posix" else os.O_RDWR)
        _sync_folder(Path(parent))


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened, and renames are journalled
        _sync(folder, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
