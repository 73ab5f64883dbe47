"""Freed memory, given back to the system."""

from __future__ import annotations

import ctypes
import gc
import os


def return_freed_memory(*, collect: bool = True) -> None:
    """Give the system back what is freed: the C library keeps it, and a peak taken next would count it as the model's.

    The demo's process: 919 MB after int8 compression, 592 MB after this. `collect` frees what only circular references
    hold, first; that takes 0.1 s where many objects live.
    """
    if collect:
        gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:  # glibc has it, others do not
        trim(0)
