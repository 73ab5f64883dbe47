"""Graphs are recorded on one stream a GPU, wherever the caller stands, while other threads go on."""

from __future__ import annotations

import threading

import pytest
import torch

from inference_pio.kernels.recording import recording, recording_stream

pytestmark = pytest.mark.gpu
DEVICES = [pytest.param(0), pytest.param(1, marks=pytest.mark.skipif("torch.cuda.device_count() < 2"))]


@pytest.mark.parametrize("number", DEVICES)
def test_it_records_on_the_device_that_is_meant(number: int) -> None:
    device = torch.device("cuda", number)
    count, graph = torch.zeros(1, device=device), torch.cuda.CUDAGraph()
    with recording(graph, device):
        assert torch.cuda.current_stream() == recording_stream(device)
        count.add_(1)
    assert torch.cuda.current_device() == 0
    graph.replay()
    graph.replay()
    assert count.item() == 2


def test_other_threads_go_on_meanwhile() -> None:
    device = torch.device("cuda", 0)
    graph, count, said = torch.cuda.CUDAGraph(), torch.zeros(1, device=device), list[float]()

    def allocate() -> None:
        said.append(torch.ones(1 << 24, device=device).sum().item())

    with recording(graph, device):
        count.add_(1)
        other = threading.Thread(target=allocate)
        other.start()
        other.join(30)
    assert said == [float(1 << 24)]
    graph.replay()
    assert count.item() == 1


def test_a_step_that_fails_leaves_the_next_recording_whole() -> None:
    device = torch.device("cuda", 0)
    count = torch.zeros(1, device=device)

    def fail() -> None:
        with recording(torch.cuda.CUDAGraph(), device):
            count.add_(1)
            raise KeyError("a step")

    with pytest.raises(KeyError):
        fail()
    graph = torch.cuda.CUDAGraph()
    with recording(graph, device):
        count.add_(1)
    graph.replay()
    assert count.item() == 1
