"""A CPU as if it were a device with memory of its own: what tests of slots for experts share."""

from __future__ import annotations

from typing import Any

import pytest

from inference_pio.manager import ModularOptimizationManager
from inference_pio.optimizations.memory.disk_offloading import DiskOffloading
from inference_pio.streaming.expert_slots import ExpertSlots
from inference_pio.streaming.hooks import stream_of

NAME = "disk_offloading"


@pytest.fixture
def cpu_beside_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts go from host memory to slots on the "device", which is the same memory, by the same code."""
    monkeypatch.setattr(DiskOffloading, "beside_the_host", frozenset({"cuda", "cpu"}))


def put(model: Any, budget: str = "70%", host_budget: str = "100%") -> ModularOptimizationManager:
    manager = ModularOptimizationManager()
    parameters = {NAME: {"gpu_budget": budget, "host_budget": host_budget}}
    manager.apply_optimizations(model, [NAME], parameters=parameters)
    return manager


def slots_of(model: Any) -> ExpertSlots:
    found = stream_of(model)
    assert isinstance(found, ExpertSlots)
    return found
