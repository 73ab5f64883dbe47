from __future__ import annotations

import os
from pathlib import Path

import pytest

from inference_pio.measure import ceilings
from inference_pio.measure.ceilings import measure_ceilings

CPU = ["memory copy", "memory read", "matmul bfloat16", "matmul float32", "disk read"]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "BLOCK_BYTES", {"cpu": 2**20, "cuda": 2**24})
    monkeypatch.setattr(ceilings, "EDGE", {"cpu": 64, "cuda": 256})
    monkeypatch.setattr(ceilings, "DISK_BYTES", 2**20)


def test_each_ceiling_is_a_rate_with_its_unit_and_how_it_was_measured() -> None:
    heard: list[str] = []
    found = measure_ceilings("cpu", 0.01, lambda name, fraction: heard.append(name))
    assert [one.name for one in found] == heard == CPU
    for one in found:
        assert one.value is not None
        assert one.value > 0
        assert one.unit in ("GB/s", "TFLOP/s")
        assert one.method
        assert list(one.to_json()) == ["name", "value", "unit", "method"]


def test_the_file_that_is_read_is_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings.tempfile, "gettempdir", lambda: str(tmp_path))
    assert measure_ceilings("cpu", 0.01)[-1].value is not None
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_no_number_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "DISK_BYTES", 2**60)
    disk = measure_ceilings("cpu", 0.01)[-1]
    assert disk.value is None
    assert "MB free" in disk.method


def test_where_pages_cannot_be_dropped_the_disk_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    assert measure_ceilings("cpu", 0.01)[-1].value is None


@pytest.mark.gpu
def test_a_gpu_has_its_pinned_link_measured_both_ways() -> None:
    names = [one.name for one in measure_ceilings("cuda", 0.01)]
    assert names == [*CPU, "host to device, pinned", "device to host, pinned"]
