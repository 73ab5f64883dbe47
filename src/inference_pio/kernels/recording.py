"""Where CUDA graphs are recorded: one at a time in a process, on one stream of each GPU."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator

import torch

_ONE_AT_A_TIME = threading.Lock()
"""Recording begins by waiting for the whole device, which must not be recording then."""


@functools.cache
def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a GPU on which everything is tried and recorded: torch's own belongs to the GPU that recorded
    first, and matrix products keep a workspace for every stream that they ever ran on.
    """
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call, no-any-return]


@contextlib.contextmanager
def recording(graph: torch.cuda.CUDAGraph, device: torch.device) -> Iterator[None]:
    """Record what is launched in this block. Other threads may go on: their streams are not recorded."""
    side, how = recording_stream(device), "thread_local"
    with _ONE_AT_A_TIME, torch.cuda.device(device), torch.cuda.graph(graph, stream=side, capture_error_mode=how):
        yield
