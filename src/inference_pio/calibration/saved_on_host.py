"""What a backward pass needs of its forward, kept in the host's memory meanwhile: for devices that are too small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BESIDE_THE_HOST = frozenset({"cuda"})
"""Kinds of devices whose memory is not the host's."""
LEAST_BYTES = 2**20
"""Smaller tensors stay: they are many, and together little."""


@dataclass(frozen=True)
class Waiting:
    """What a tensor holds, on the host, and how it lay where: a product of other strides may give other bits."""

    held: Tensor
    stride: tuple[int, ...]
    device: torch.device

    def back(self) -> Tensor:
        if self.held.stride() == self.stride:
            return self.held.to(self.device)
        found = torch.empty_strided(self.held.shape, self.stride, dtype=self.held.dtype, device=self.device)
        return found.copy_(self.held)


@dataclass
class SavedOnHost:
    """Whether what is saved goes to the host from now on, how many tensors went, and of how many bytes."""

    wanted: bool = False
    tensors: int = 0
    nbytes: int = 0


@contextmanager
def saved_on_host(model: nn.Module, counted: SavedOnHost) -> Iterator[None]:
    """Within this, what autograd saves lies on the host until it is asked for; the model's own tensors stay.

    Gradients are the same bits: values and strides come back as they were. It lies in ordinary memory: to pin takes
    longer than to copy once, and torch would keep what is pinned.

    >>> with saved_on_host(nn.Linear(2, 2), SavedOnHost()):
    ...     torch.ones(2, requires_grad=True).exp().sum().backward()
    """
    held = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}

    def pack(tensor: Tensor) -> Tensor | Waiting:
        if not _goes(tensor) or tensor.untyped_storage().data_ptr() in held:
            return tensor
        counted.tensors += 1
        counted.nbytes += tensor.nbytes
        return Waiting(tensor.detach().to("cpu", copy=True), tensor.stride(), tensor.device)

    def unpack(saved: Tensor | Waiting) -> Tensor:
        return saved.back() if isinstance(saved, Waiting) else saved

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def _goes(tensor: Tensor) -> bool:
    """Whether a tensor takes memory of a device: one that repeats what it holds would become larger."""
    if tensor.device.type not in BESIDE_THE_HOST or tensor.layout is not torch.strided:
        return False
    repeats = any(not stride and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    return tensor.nbytes >= LEAST_BYTES and not repeats
