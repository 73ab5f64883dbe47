"""What is parked: how tensors looked at their storage, where its bytes wait, and how they come back checked."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from inference_pio.errors import VaultError
from inference_pio.undo.awaited import awaited_of, this_loading
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
        """How a tensor looks, or will once the bytes that it waits for are there."""
        if (waiting := awaited_of(tensor)) is not None:
            return waiting.view
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

    def stand_in(self) -> torch.Tensor:
        """A tensor of the same look that costs one number: not-a-number, or the largest one where there is none."""
        one = View(self.dtype, self.device, (1,), (1,), 0, self.inference)
        storage = one.empty().untyped_storage() if self.device.type == "meta" else _one_number(one)
        return View(self.dtype, self.device, self.shape, (0,) * len(self.shape), 0, self.inference).on(storage)

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
    during: object | None = field(default_factory=this_loading)
    """The loading of a model in which it was parked, if it was."""

    def fetch(self) -> list[torch.Tensor]:
        """The original tensors, on their device, sharing one storage again.

        Raises VaultError where the bytes are not those that were parked. A model that was not loaded to its end gets
        stand-ins: to bring its originals would take the memory that it was spared.
        """
        if self.during is not None and self.during is this_loading():
            return [view.stand_in() for view in self.views]
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
    if (waiting := awaited_of(tensor)) is not None:
        return waiting.read(None)
    storage = tensor.detach().untyped_storage()
    flat = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)  # type: ignore[call-overload]
    return flat.cpu()


def without_base(tensor: torch.Tensor) -> torch.Tensor:
    """The same bytes as a tensor of its own: a view keeps what it was made from in memory, whatever it shows later."""
    return tensor if tensor.is_meta else View.of(tensor).on(tensor.untyped_storage())


def _one_number(view: View) -> torch.UntypedStorage:
    try:
        number = torch.full((1,), float("nan"), dtype=view.dtype, device=view.device)
    except (RuntimeError, ValueError):  # whole numbers
        number = torch.full((view.dtype.itemsize,), 127, dtype=torch.uint8, device=view.device)
    return number.untyped_storage()


def _gone() -> torch.Tensor:
    raise VaultError("the originals were given up (keep_originals='none'): load the model anew to get them back.")
