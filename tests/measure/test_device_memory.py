from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from inference_pio.measure import device_memory
from inference_pio.measure.device_memory import device_bytes


@pytest.mark.parametrize(
    ("told", "bytes_of_it"),
    [("1048576\n", 2**20), ("max\n", None), ("0", None), (str(2**62), None), ("nonsense", None)],
)
def test_a_container_is_held_to_its_limit(
    told: str, bytes_of_it: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text(told)
    monkeypatch.setattr(device_memory, "LIMITS", (str(limit), str(tmp_path / "absent")))
    assert device_bytes(torch.device("cpu")) == (bytes_of_it or psutil.virtual_memory().total)
