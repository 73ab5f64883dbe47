"""Host memory that a GPU copies from by itself, exactly as large as asked for."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from inference_pio.errors import StreamError
from inference_pio.streaming.aligned import BLOCK, aligned_bytes, up_to


class Pinned:
    """Registered memory: torch's own pinned allocator takes the next power of two, up to twice the weights.

    Not `registered`, it is plain memory: no GPU copies from it.
    """

    def __init__(self, nbytes: int, *, registered: bool = True) -> None:
        whole = aligned_bytes(up_to(max(nbytes, 1), BLOCK))
        if not registered:
            self.bytes = whole[:nbytes]
            return
        code = int(_runtime().cudaHostRegister(whole.data_ptr(), whole.numel(), 0))
        if code != 0:
            raise StreamError(
                f"the driver pins no {whole.numel()} bytes of host memory (code {code}): give a smaller host_budget."
            )
        self.bytes = whole[:nbytes]
        weakref.finalize(self, _unregister, whole)


def _unregister(whole: torch.Tensor) -> None:
    _runtime().cudaHostUnregister(whole.data_ptr())


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
