"""The vault: where originals wait while a model does without them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch

from inference_pio.errors import DiskFull, InvalidSetting, StorageError, VaultError
from inference_pio.undo.awaited import origin_of
from inference_pio.undo.checkpoint import Checkpoint, TensorInFile
from inference_pio.undo.parked import Parked, View, bytes_of, checksum_of
from inference_pio.undo.private_folder import PrivateFolder, write_private

KeepOriginals = Literal["auto", "checkpoint", "host", "disk", "device", "none"]
SPARE_DISK_BYTES = 64 * 2**20


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
        self._folder: PrivateFolder | None = None
        self._checkpoint = checkpoint
        self._count = 0

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The model's own local files, where they may serve as originals."""
        return self._checkpoint

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
        if (known := origin_of(tensor)) is not None:  # it has just been read from there
            checksum = checksum_of(bytes_of(tensor)) if known.checksum is None else known.checksum
            return Parked(views, known.where, known.again, checksum, tensor.nbytes)
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
            self._folder = PrivateFolder(self._parent or Path(tempfile.gettempdir()))
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
        write_private(file, raw)
        return parked


@dataclass(frozen=True)
class _Reread:
    """Reads a tensor again from the checkpoint, as the bytes of the dtype that the model had."""

    source: TensorInFile
    dtype: torch.dtype

    def __call__(self) -> torch.Tensor:
        return self.source.read().to(self.dtype).reshape(-1).view(torch.uint8)


def _unlink(file: Path) -> None:
    file.unlink(missing_ok=True)
