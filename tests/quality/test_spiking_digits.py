"""A plain net on scikit-learn's digits: as many right after 16 steps of spikes as before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.manager import ModularOptimizationManager
from inference_pio.spiking.module import SpikingModule

STEPS = 16


def trained(images: torch.Tensor, digits: torch.Tensor) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
        for _ in range(12):
            for rows in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(images[rows]), digits[rows]).backward()
                optimizer.step()
    return net.eval()


def test_spikes_read_digits_as_well_as_numbers_do() -> None:
    data: Any = pytest.importorskip("sklearn.datasets").load_digits()
    images, digits = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)
    net = trained(images[:1200], digits[:1200])

    def right() -> float:
        with torch.no_grad():
            return float((net(images[1200:]).argmax(-1) == digits[1200:]).float().mean())

    before = right()
    assert before > 0.93
    asked = {
        "inputs": images[:256].tolist(), "coding": "rate", "levels": STEPS, "outlier_ratio": 0.0, "prove": True,
    }  # fmt: skip
    ModularOptimizationManager().apply_optimizations(net, ["snn_conversion"], parameters={"snn_conversion": asked})
    assert sum(isinstance(module, SpikingModule) for module in net.modules()) == 4
    print(f"{before:.4f} before, {right():.4f} with {STEPS} steps")
    assert abs(right() - before) <= 0.005
