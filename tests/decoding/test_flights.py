"""Tokens land in the order in which their runs were sent off."""

from __future__ import annotations

import pytest
import torch

from inference_pio.decoding.flights import IN_FLIGHT, Flights
from inference_pio.decoding.runner import record
from inference_pio.decoding.slots import Slots


def check(device: torch.device) -> None:
    slots = Slots(2, 3, device)
    flights = Flights(slots)

    def step() -> None:
        slots.given.add_(1)

    runner = record(step, [slots.given], device)
    landed = []
    for _ in range(3):
        while len(flights) < flights.most:
            flights.launch(runner)
        landed.append(flights.land())
    assert [tokens.unique().tolist() for tokens in landed] == [[1], [2], [3]]
    assert all(tokens.device.type == "cpu" for tokens in landed)
    assert len(flights) == flights.most - 1


def test_on_a_cpu_a_run_lands_before_the_next() -> None:
    check(torch.device("cpu"))
    assert Flights(Slots(1, 1, torch.device("cpu"))).most == 1


@pytest.mark.gpu
def test_on_a_gpu_the_next_is_under_way() -> None:
    check(torch.device("cuda"))
    assert Flights(Slots(1, 1, torch.device("cuda"))).most == IN_FLIGHT
