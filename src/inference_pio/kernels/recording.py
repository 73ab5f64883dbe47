"""Where CUDA graphs are recorded: one at a time in a process, on one stream of each GPU."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

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
def recording(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any = None) -> Iterator[None]:
    """Record what is launched in this block. Other threads may go on: their streams are not recorded. Without a `pool`
    (`torch.cuda.graph_pool_handle()`) the graph has memory of its own. A recording that the driver ends, as where the
    host is asked for a number, leaves its pool unfit for others (seen with torch 2.11)."""
    how: dict[str, Any] = {"stream": recording_stream(device), "pool": pool, "capture_error_mode": "thread_local"}
    with _ONE_AT_A_TIME, torch.cuda.device(device), torch.cuda.graph(graph, **how):
        yield


def pool_bytes(pool: Any) -> int:
    """Bytes of GPU memory that belong to a pool of graphs."""
    segments: list[dict[str, Any]] = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    return sum(each["total_size"] for each in segments if tuple(each["segment_pool_id"]) == tuple(pool))
