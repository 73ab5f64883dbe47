"""The store: weights that no checkpoint holds as they are, one file a layer, whole or not there.

A store is named by the hash of its manifest, which has every checksum: another model's store, or one of other weights,
has another name. The manifest is written last; what has none is the leftover of a process that died.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from inference_pio.errors import StorageError
from inference_pio.files import require_free_bytes, storage_errors, write_atomically
from inference_pio.streaming.aligned import BLOCK, up_to
from inference_pio.streaming.pieces import Piece, cut
from inference_pio.streaming.private_root import check_own, private_root
from inference_pio.streaming.store_lock import LOOK_AGAIN_S, SUFFIX, StoreLock

MANIFEST = "manifest.json"
FORMAT = "inference-pio weight store 1"
SPARE_BYTES = 16 * 2**20
PATIENCE_S = 60.0
NAME = re.compile(r"[0-9a-f]{32}")
"""The name of a store: what lies beside in a folder of the user's has others, locks of other programs among it."""


@dataclass(frozen=True)
class Content:
    """What one file of a store holds: stretches of bytes (flat uint8 on the host), each at a multiple of a block.

    They are walked through twice, to be summed and to be written; with their `sizes` told, they need not all be in
    memory at one time.
    """

    name: str
    stretches: Iterable[torch.Tensor]
    sizes: tuple[int, ...] | None = None

    @property
    def offsets(self) -> list[int]:
        found = [0]
        for size in self.sizes if self.sizes is not None else [stretch.numel() for stretch in self.stretches]:
            found.append(found[-1] + up_to(size, BLOCK))
        return found

    @property
    def nbytes(self) -> int:
        return self.offsets[-1]


class Store:
    """A store that this process reads. It goes when the last process that reads it closes it, or ends."""

    def __init__(self, folder: Path, lock: StoreLock, pieces: Sequence[Sequence[Sequence[Piece]]], *, written: int):
        self.folder, self.pieces, self.written_bytes = folder, pieces, written
        self._end = weakref.finalize(self, _leave, folder, lock, os.getpid())

    def share(self) -> Store:
        """Another hold on the same store: it goes when both are closed. Raises StorageError where it has gone."""
        lock = StoreLock(self.folder.with_suffix(SUFFIX))
        if not lock.shared(PATIENCE_S) or not (self.folder / MANIFEST).is_file():
            lock.close()
            raise StorageError(f"the weights in {self.folder} are gone: load the model anew.")
        return Store(self.folder, lock, self.pieces, written=0)

    def close(self) -> None:
        self._end()


def open_store(root: Path, contents: Sequence[Content]) -> Store:
    """The store of these contents under a folder: read where it lies there whole, else written.

    `pieces[file][stretch]` of what comes back tells where everything lies. Raises StorageError, DiskFull.
    """
    root = private_root(root)
    sweep(root)
    bare = [[list(cut(Path(one.name), at, 0, raw)) for at, raw in _placed(one)] for one in contents]
    manifest = _manifest(contents, bare)
    folder = root / hashlib.sha256(manifest).hexdigest()[:32]
    deadline = time.monotonic() + PATIENCE_S
    with storage_errors(folder):
        while True:
            lock = StoreLock(folder.with_suffix(SUFFIX))
            try:
                if lock.shared(PATIENCE_S):
                    written = 0
                    if not _is_whole(folder, manifest) and lock.exclusive():
                        written = _write(folder, contents, manifest)
                    if lock.shared(PATIENCE_S) and _is_whole(folder, manifest):
                        pieces = [[[_in(folder, piece) for piece in part] for part in file] for file in bare]
                        return Store(folder, lock, pieces, written=written)
            except BaseException:
                if not os.path.lexists(folder) and lock.exclusive():
                    lock.path.unlink(missing_ok=True)
                lock.close()
                raise
            lock.close()
            if time.monotonic() > deadline:
                raise StorageError(f"{folder} is in use by a process that left it unfinished: give another folder.")
            time.sleep(LOOK_AGAIN_S)


def sweep(root: Path) -> list[Path]:
    """Remove the stores that no living process reads or writes; returns their folders."""
    swept = []
    for path in sorted(path for path in root.glob(f"*{SUFFIX}") if NAME.fullmatch(path.stem)):
        with contextlib.suppress(OSError):  # another process has just swept it, or it is none of ours
            lock = StoreLock(path)
            try:
                if lock.exclusive():
                    _remove(path.with_suffix(""), path)
                    swept.append(path.with_suffix(""))
            finally:
                lock.close()
    return swept


def _placed(content: Content) -> Iterator[tuple[int, torch.Tensor]]:
    return zip(content.offsets, content.stretches, strict=False)


def _in(folder: Path, piece: Piece) -> Piece:
    return Piece(folder / piece.file, piece.offset, piece.nbytes, piece.at, piece.checksum)


def _manifest(contents: Sequence[Content], pieces: Sequence[Sequence[Sequence[Piece]]]) -> bytes:
    files = {
        content.name: {
            "nbytes": content.nbytes,
            "pieces": [[one.offset, one.nbytes, one.checksum] for part in parts for one in part],
        }
        for content, parts in zip(contents, pieces, strict=True)
    }
    return json.dumps({"format": FORMAT, "files": files}, sort_keys=True).encode()


def _is_whole(folder: Path, manifest: bytes) -> bool:
    """Whether a store lies there with this very manifest and with files as long as it says."""
    try:
        check_own(folder)
        if (folder / MANIFEST).read_bytes() != manifest:
            return False
        files = json.loads(manifest)["files"]
        return all((folder / name).lstat().st_size == told["nbytes"] for name, told in files.items())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _write(folder: Path, contents: Sequence[Content], manifest: bytes) -> int:
    """Write all files, each beside, synced and renamed, and the manifest last; nothing stays if one fails."""
    if os.path.lexists(folder):
        check_own(folder)
        shutil.rmtree(folder)
    require_free_bytes(folder.parent, sum(one.nbytes for one in contents) + SPARE_BYTES)
    folder.mkdir(mode=0o700)
    try:
        for content in contents:
            _write_file(folder / content.name, content)
        write_atomically(folder / MANIFEST, manifest)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return sum(one.nbytes for one in contents)


def _write_file(path: Path, content: Content) -> None:
    partial = path.with_suffix(".partial")
    file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if content.nbytes and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, content.nbytes)  # a disk without room says so here, before any write
        os.ftruncate(file, content.nbytes)
        for offset, raw in _placed(content):
            _write_all(file, raw.numpy().data, offset)
        os.fsync(file)
    finally:
        os.close(file)
    partial.replace(path)


def _write_all(file: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(file, data, offset)
        data, offset = data[done:], offset + done


def _leave(folder: Path, lock: StoreLock, process: int) -> None:
    """Stop reading a store; the last reader removes it. A forked child leaves all that to its parent."""
    if os.getpid() == process:
        with contextlib.suppress(OSError):
            if lock.exclusive():
                _remove(folder, lock.path)
    lock.close()


def _remove(folder: Path, lock: Path) -> None:
    """Remove a store whose lock is held alone. A link in its place is removed, and not followed."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)
    lock.unlink(missing_ok=True)
