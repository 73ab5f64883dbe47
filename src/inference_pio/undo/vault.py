"""The vault: where originals wait while a model does without them, and how they come back checked."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import tempfile
import time
import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import psutil
import torch

from inference_pio.errors import DiskFull, InvalidSetting, StorageError, VaultError
from inference_pio.undo.checkpoint import Checkpoint, TensorInFile

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

KeepOriginals = Literal["auto", "checkpoint", "host", "disk", "device", "none"]
SPARE_DISK_BYTES = 64 * 2**20
CHUNK_BYTES = 16 * 2**20
NEW_S = 60.0
LOCK = "lock"
_FOLDER = re.compile(r"undo-(?P<pid>\d{1,9})-(?P<host>\w+)\.[^.]+")


@dataclass(frozen=True)
class View:
    """How one tensor looks at its storage."""

    dtype: torch.dtype
    device: torch.device
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    inference: bool = False

    @staticmethod
    def of(tensor: torch.Tensor) -> View:
        shape, stride, offset = tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
        return View(tensor.dtype, tensor.device, shape, stride, offset, tensor.is_inference())

    def empty(self) -> torch.Tensor:
        """A tensor of this kind without bytes; the mode of the caller must not make an inference tensor of it."""
        with torch.inference_mode(self.inference):
            return torch.empty(0, dtype=self.dtype, device=self.device)

    def on(self, storage: torch.UntypedStorage) -> torch.Tensor:
        """The tensor that looks so at a storage."""
        with torch.inference_mode(self.inference), torch.no_grad():
            return self.empty().set_(storage, self.offset, self.shape, self.stride)  # type: ignore[call-overload]

    @property
    def end_bytes(self) -> int:
        """Bytes from the storage's start to one past the view's last element."""
        reach = (
            0 if 0 in self.shape else 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        )
        return (self.offset + reach) * self.dtype.itemsize


@dataclass
class Parked:
    """One storage that is parked: the views on it, where its bytes are, and how many of them cost memory.

    `nbytes` is -1 where the originals are given up once the step stands (`settle`).
    """

    views: tuple[View, ...]
    where: str
    load: Callable[[], torch.Tensor]
    checksum: int
    nbytes: int
    held_bytes: int = 0
    discard: Callable[[], None] = field(default=lambda: None)

    def fetch(self) -> list[torch.Tensor]:
        """The original tensors, on their device, sharing one storage again.

        Raises VaultError where the bytes are not those that were parked.
        """
        raw = self.load()
        if self.nbytes not in (-1, raw.numel()) or checksum_of(raw) != self.checksum:
            raise VaultError(
                f"the originals parked in {self.where} are damaged ({raw.numel()} bytes found). "
                "The model still works as it is; load it anew to get the original back."
            )
        storage = raw.to(self.views[0].device).untyped_storage()
        return [view.on(storage) for view in self.views]

    def settle(self) -> None:
        """The step stands: what is given up on purpose goes now."""
        if self.nbytes < 0:
            self.discard()
            self.load, self.discard = _gone, lambda: None


def checksum_of(raw: torch.Tensor) -> int:
    """CRC-32 of a one-dimensional uint8 tensor on the host."""
    return zlib.crc32(raw.numpy().data) if raw.numel() else 0


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """All bytes of the storage under a tensor, as a flat uint8 tensor on the host (no copy where it is there)."""
    storage = tensor.detach().untyped_storage()
    flat = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)  # type: ignore[call-overload]
    return flat.cpu()


class Vault:
    """Parks storages as `keep_originals` says.

    `auto` is `checkpoint` where the model's own files hold the same bits, else `host` for tensors on a GPU and
    `disk` for those on the CPU; `device` keeps tensors where they are; `none` ends reversibility on purpose.
    """

    def __init__(
        self, keep: KeepOriginals = "auto", folder: Path | None = None, checkpoint: Checkpoint | None = None
    ) -> None:
        if keep not in get_args(KeepOriginals):
            raise InvalidSetting(f"keep_originals={keep!r} is not one of {', '.join(get_args(KeepOriginals))}.")
        self.keep = keep
        self._parent = folder
        self._folder: _Folder | None = None
        self._checkpoint = checkpoint
        self._count = 0

    def keeps_in_place(self, tensor: torch.Tensor) -> bool:
        """Whether this tensor's bytes simply stay where they are."""
        return tensor.is_meta or self.keep == "device" or (self.keep == "host" and tensor.device.type == "cpu")

    def park(self, tensors: Sequence[torch.Tensor], names: Mapping[int, str]) -> Parked:
        """Park the one storage under these tensors; `names` gives a tensor's name in the state_dict by its id."""
        views = tuple(View.of(tensor) for tensor in tensors)
        if self.keep in ("auto", "checkpoint", "none") and (parked := self._in_checkpoint(tensors, views, names)):
            return self._given_up(parked) if self.keep == "none" else parked
        if self.keep == "checkpoint":
            raise VaultError(
                f"keep_originals='checkpoint', but {names.get(id(tensors[0]), 'a tensor')} is not in the model's own "
                "local files bit for bit. Use keep_originals='auto', 'disk' or 'host'."
            )
        raw = bytes_of(tensors[0])
        if self.keep == "none":
            return self._given_up(self._while_the_step_runs(raw, views))
        on_disk = self.keep == "disk" or (self.keep == "auto" and tensors[0].device.type == "cpu")
        return self._on_disk(raw, views) if on_disk else self._on_host(raw, views)

    def _while_the_step_runs(self, raw: torch.Tensor, views: tuple[View, ...]) -> Parked:
        """A step that fails must leave the model whole, even where its originals are to be given up."""
        if views[0].device.type != "cpu":
            return self._on_host(raw, views)
        try:
            return self._on_disk(raw, views)
        except StorageError:
            return self._on_host(raw, views)

    def _given_up(self, parked: Parked) -> Parked:
        return replace(parked, where="nowhere (keep_originals='none')", nbytes=-1, held_bytes=0)

    def _in_checkpoint(
        self, tensors: Sequence[torch.Tensor], views: tuple[View, ...], names: Mapping[int, str]
    ) -> Parked | None:
        tensor, view = tensors[0], views[0]
        whole = view.offset == 0 and tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        if self._checkpoint is None or not whole or not tensor.numel():
            return None
        found = self._checkpoint.holding(names.get(id(tensor), ""), tensor)
        if found is None:
            return None
        checksum = checksum_of(bytes_of(tensor))
        return Parked(views, str(found.file), _Reread(found, view.dtype), checksum, tensor.nbytes)

    def _on_host(self, raw: torch.Tensor, views: tuple[View, ...]) -> Parked:
        return Parked(views, "host memory", lambda: raw, checksum_of(raw), raw.numel(), held_bytes=raw.numel())

    def _on_disk(self, raw: torch.Tensor, views: tuple[View, ...]) -> Parked:
        if self._folder is None:
            self._folder = _Folder(self._parent or Path(tempfile.gettempdir()))
        folder = self._folder
        free = folder.free_bytes()
        if free < raw.numel() + SPARE_DISK_BYTES:
            raise DiskFull(
                f"no room to park {raw.numel() / 1e6:.0f} MB of originals in {folder.path} ({free / 1e6:.0f} MB free). "
                "Free some space, set INFERENCE_PIO_CACHE to another disk, or use keep_originals='host' or 'none'."
            )
        self._count += 1
        file = folder.path / f"{self._count:06d}.bin"
        load = partial(folder.read, file, raw.numel())  # not `raw` itself: that is the memory to be freed
        parked = Parked(views, str(folder.path), load, checksum_of(raw), raw.numel(), discard=partial(_unlink, file))
        _write_private(file, raw)
        return parked


class _Folder:
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


def _gone() -> torch.Tensor:
    raise VaultError("the originals were given up (keep_originals='none'): load the model anew to get them back.")


@dataclass(frozen=True)
class _Reread:
    """Reads a tensor again from the checkpoint, as the bytes of the dtype that the model had."""

    source: TensorInFile
    dtype: torch.dtype

    def __call__(self) -> torch.Tensor:
        return self.source.read().to(self.dtype).reshape(-1).view(torch.uint8)


def _write_private(file: Path, raw: torch.Tensor) -> None:
    data = raw.numpy().data
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
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


def _unlink(file: Path) -> None:
    file.unlink(missing_ok=True)


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
