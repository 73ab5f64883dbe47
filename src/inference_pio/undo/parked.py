"""What is parked: how tensors looked at their storage, where its bytes wait, and how they come back checked."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from inference_pio.errors import VaultError
from inference_pio.undo.interrupts import held_back


@dataclass(frozen=True)
class View:
    """How one tensor looks at its storage.

    A Ctrl-C waits while one is made: an `inference_mode` it cut short would set torch's gradient mode back to what it
    was inside, whenever its traceback dies.
    """

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

    @held_back()
    def empty(self) -> torch.Tensor:
        """A tensor of this kind without bytes; the mode of the caller must not make an inference tensor of it."""
        with torch.inference_mode(self.inference):
            return torch.empty(0, dtype=self.dtype, device=self.device)

    @held_back()
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


def _gone() -> torch.Tensor:
    raise VaultError("the originals were given up (keep_originals='none'): load the model anew to get them back.")
