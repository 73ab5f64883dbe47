"""What a model's tensors take in memory, on a model and on its skeleton."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inference_pio.undo.stored_bytes import stored_bytes
from inference_pio.undo.tensors import stand_in_for


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_tied_counts_once_and_a_stand_in_as_one_number(device: str) -> None:
    model = nn.Sequential(nn.Linear(8, 4, bias=False, device=device), nn.Linear(8, 4, device=device))
    model[1].weight = model[0].weight
    model.register_buffer("places", torch.zeros(3, dtype=torch.int64, device=device))
    assert stored_bytes(model) == 4 * (8 * 4 + 4) + 8 * 3
    model[0].weight.data = stand_in_for(model[0].weight)
    assert stored_bytes(model) == 4 * (1 + 4) + 8 * 3


def test_a_view_counts_with_the_storage_that_it_keeps() -> None:
    whole, model = torch.zeros(8, 4), nn.Module()
    model.bottom = nn.Parameter(whole[4:])
    assert stored_bytes(model) == whole.nbytes
    model.top = nn.Parameter(whole[:4])
    assert stored_bytes(model) == whole.nbytes
