"""The memory that a model's tensors take: what is shared once, and what is put away not at all."""

from __future__ import annotations

import torch
from torch import nn

from inference_pio.undo.awaited import awaited_of
from inference_pio.undo.parked import View
from inference_pio.undo.slots import storage_key, tensors_of


def stored_bytes(model: nn.Module) -> int:
    """Bytes under all parameters and buffers, tied ones once; a stand-in takes the one number that it is. It works on
    a skeleton as on a model.

    >>> stored_bytes(nn.Linear(3, 2, bias=False))
    24
    """
    sizes: dict[int, int] = {}
    for tensor in tensors_of(model):
        shown = tensor.is_meta or awaited_of(tensor) is not None
        nbytes = _bytes_shown(tensor) if shown else tensor.untyped_storage().nbytes()
        sizes[storage_key(tensor)] = max(nbytes, sizes.get(storage_key(tensor), 0))
    return sum(sizes.values())


def _bytes_shown(tensor: torch.Tensor) -> int:
    """What a tensor would take, or will: a stand-in, which shows one number everywhere, takes that."""
    return min(tensor.nbytes, View.of(tensor).end_bytes)
