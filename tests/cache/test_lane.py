from __future__ import annotations

import pytest
import torch

from inference_pio.cache.lane import CudaLane, HereLane, lane_of


def test_on_a_cpu_what_is_sent_is_there() -> None:
    lane = lane_of(torch.device("cpu"))
    assert isinstance(lane, HereLane)
    to = torch.zeros(3)
    lane.begin()
    lane.send(to, torch.arange(3.0))
    assert to.tolist() == [0, 1, 2]
    lane.wait(lane.mark())
    lane.drain()


@pytest.mark.gpu
def test_on_a_gpu_copies_come_in_their_order_and_behind_what_was_computed() -> None:
    device = torch.device("cuda")
    lane = lane_of(device)
    assert isinstance(lane, CudaLane)
    host = torch.empty(2**22, pin_memory=True)
    there = torch.zeros(2**22, device=device)
    for number in range(20):
        there.fill_(number)
        lane.begin()
        lane.send(host, there)
        back = torch.empty_like(there)
        lane.send(back, host)
        lane.wait(lane.mark())
        assert bool((back == number).all())
    lane.drain()
