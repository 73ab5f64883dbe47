"""Where CUDA graphs are recorded: one at a time in a process, on one stream of each GPU."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import torch

from inference_pio.compat import let_go_of_pool

_ONE_AT_A_TIME = threading.Lock()
"""Recording begins by waiting for the whole device, which must not be recording then."""


@functools.cache
def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a GPU on which everything is tried and recorded: torch's own belongs to the GPU that recorded
    first, and matrix products keep a workspace for every stream that they ever ran on.
    """
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call, no-any-return]


@contextlib.contextmanager
def recording(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any = None) -> Iterator[None]:
    """Record what is launched in this block. Other threads may go on: their streams are not recorded. Without a `pool`
    (`torch.cuda.graph_pool_handle()`) the graph has memory of its own."""
    how: dict[str, Any] = {"stream": recording_stream(device), "pool": pool, "capture_error_mode": "thread_local"}
    with _ONE_AT_A_TIME, torch.cuda.device(device):
        try:
            with torch.cuda.graph(graph, **how):
                yield
        except torch.AcceleratorError:  # the driver ended it: by a call that asks the host, for one
            if pool is not None:
                let_go_of_pool(device, pool)
            raise


def pool_bytes(pool: Any) -> int:
    """Bytes of GPU memory that belong to a pool of graphs."""
    segments: list[dict[str, Any]] = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    return sum(each["total_size"] for each in segments if tuple(each["segment_pool_id"]) == tuple(pool))
