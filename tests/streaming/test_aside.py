"""What is set aside while a model loads leaves memory, and comes back bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from inference_pio.streaming.arrival import Arrivals
from inference_pio.streaming.aside import Aside
from inference_pio.undo.awaited import awaited_of
from inference_pio.undo.slots import tensors_of


@pytest.mark.parametrize("in_host", [True, False])
def test_tensors_wait_for_what_was_set_aside(tmp_path: Path, in_host: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    before = [tensor.detach().clone() for tensor in tensors_of(model)]
    Aside({"0": in_host}, tmp_path).put(model, "0")
    assert [awaited_of(tensor) is not None for tensor in tensors_of(model)] == [True, True, False, False]
    assert torch.isnan(model[0].weight).all()
    assert any(tmp_path.rglob("*.bin")) != in_host
    arrivals = Arrivals(torch.device("cpu"))
    arrivals.finish(model)
    arrivals.close()
    assert all(torch.equal(old, new) for old, new in zip(before, tensors_of(model), strict=True))


def test_views_of_something_larger_stay(tmp_path: Path) -> None:
    model = nn.Linear(4, 8, bias=False)
    model.weight = nn.Parameter(torch.randn(16, 4)[:8])
    Aside({"": False}, tmp_path).put(model, "")
    assert awaited_of(model.weight) is None


def test_a_module_is_done_with_after_the_last_of_its_places() -> None:
    aside = Aside({"layers.1": True, "layers.10": True, "layers.2.experts": True}, Path())
    paths = ["layers.1.up", "layers.10.up", "layers.1.down", "layers.2.experts", "head"]
    assert aside.ended_by(paths) == {1: ["layers.10"], 2: ["layers.1"], 3: ["layers.2.experts"]}
