"""Host memory at addresses that direct reads and matrix products ask for."""

from __future__ import annotations

import torch

BLOCK = 4096
"""What offsets, lengths and addresses of direct reads are multiples of."""
LINE = 64
"""Matrix products choose their kernels by where an address stands within so many bytes."""


def aligned_bytes(nbytes: int, residue: int = 0) -> torch.Tensor:
    """Uninitialised bytes whose address leaves `residue` when divided by a block; a storage of their own.

    >>> aligned_bytes(100, residue=64).data_ptr() % BLOCK
    64
    """
    with torch.inference_mode(False):
        whole = torch.empty(nbytes + BLOCK, dtype=torch.uint8)
        start = (residue - whole.data_ptr()) % BLOCK
        return part_of(whole.untyped_storage(), start, nbytes)


def part_of(storage: torch.UntypedStorage, start: int, nbytes: int) -> torch.Tensor:
    """Bytes of a storage as a tensor with a storage of its own in the same memory, which it keeps."""
    with torch.inference_mode(False):
        part: torch.UntypedStorage = storage[start : start + nbytes]
        return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(part)  # type: ignore[call-overload,no-any-return]


def up_to(nbytes: int, step: int) -> int:
    """The next multiple of a step.

    >>> up_to(5, 4), up_to(8, 4)
    (8, 8)
    """
    return -(-nbytes // step) * step
