"""The operations are chosen by device, dtype and whether the library's bits are wanted."""

from __future__ import annotations

import pytest
import torch

from inference_pio.decoding import choice
from inference_pio.decoding.choice import choose_operations
from inference_pio.decoding.fused import FusedOperations
from inference_pio.decoding.host import HostOperations
from inference_pio.decoding.operations import PlainOperations
from inference_pio.decoding.recordable import RecordableOperations
from inference_pio.kernels.triton.launch import HOPPER

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("exact", [True, False])
def test_each_device_has_its_operations(backend: str, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "choose_elementwise_backend", lambda device, dtype: backend)
    if backend == "triton":  # no such device is here to be asked
        overlap = pytest.importorskip("inference_pio.kernels.triton.overlap", reason="triton is not installed")
        monkeypatch.setattr(overlap, "device_limits", lambda device: HOPPER)
    on_host = PlainOperations if exact else HostOperations
    assert type(choose_operations(CPU, torch.bfloat16, exact=exact)) is on_host
    expected = FusedOperations if backend == "triton" and not exact else RecordableOperations
    assert type(choose_operations(GPU, torch.bfloat16, exact=exact)) is expected
