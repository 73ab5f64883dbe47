"""Counters that launches begin at zero."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton")
CPU = torch.device("cpu")


class Streams:
    """A driver whose current stream a test chooses."""

    def __init__(self) -> None:
        self.stream = 0

    def get_current_stream(self, device: int | None) -> int:
        return self.stream


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    from inference_pio.kernels.triton import counters

    found = Streams()
    monkeypatch.setattr(counters, "driver", SimpleNamespace(active=found))
    return found


def places(slots: list[tuple[torch.Tensor, int, int]]) -> list[int]:
    return [slot[0].data_ptr() + 4 * slot[1] for slot in slots]


def test_each_launch_has_a_zero_of_its_own(streams: Streams) -> None:
    from inference_pio.kernels.triton.counters import Counters

    counters = Counters(most=4)
    slots = [counters.take(CPU) for _ in range(11)]
    assert len(set(places(slots))) == 11
    assert len({slot.counters.data_ptr() for slot in slots}) == 3
    for slot in slots:
        assert slot.counters.dtype == torch.int32
        assert int(slot.counters[slot.place]) == 0
        slot.counters[slot.place] += 7


def test_each_stream_counts_with_what_it_zeroed_itself(streams: Streams) -> None:
    from inference_pio.kernels.triton.counters import Counters

    counters = Counters(most=4)
    first = counters.take(CPU)
    streams.stream = 5
    second = counters.take(CPU)
    streams.stream = 0
    third = counters.take(CPU)
    assert second.counters is not first.counters
    assert third.counters is first.counters
    assert (first.stream, second.stream, third.stream) == (0, 5, 0)


def test_threads_never_share_a_counter(streams: Streams) -> None:
    from inference_pio.kernels.triton.counters import Counters

    counters = Counters(most=3)
    found: list[tuple[torch.Tensor, int, int]] = []
    threads = [threading.Thread(target=lambda: found.extend(counters.take(CPU) for _ in range(500))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(places(found))) == 2000


@pytest.mark.gpu
def test_gpu_a_graph_zeroes_its_own_in_each_replay() -> None:
    from inference_pio.kernels.triton.counters import Counters

    counters, device = Counters(), torch.device("cuda", 0)
    outside = counters.take(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        inside = counters.take(device)
        inside.counters.add_(3)
    for _ in range(3):
        graph.replay()
        assert inside.counters.tolist() == [3]
    assert inside.counters.data_ptr() != outside.counters.data_ptr()
    assert counters.take(device).place == outside.place + 1
