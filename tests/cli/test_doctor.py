from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from inference_pio.cli import app
from inference_pio.measure import ceilings


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "BLOCK_BYTES", {"cpu": 2**20, "cuda": 2**24})
    monkeypatch.setattr(ceilings, "EDGE", {"cpu": 64, "cuda": 256})
    monkeypatch.setattr(ceilings, "DISK_BYTES", 2**20)
    monkeypatch.setattr(ceilings, "SECONDS", 0.01)


def test_hardware_versions_backends_and_ceilings_are_shown() -> None:
    answer = CliRunner().invoke(app, ["doctor", "--device", "cpu"])
    assert answer.exit_code == 0, answer.output
    for word in ("machine", "torch", "memory free", "Triton", "tensor_compression", "memory copy", "disk read", "GB/s",
                 "hardware class", "cpu (the device is cpu, no NVIDIA GPU)"):  # fmt: skip
        assert word in answer.stdout


def test_the_json_holds_the_same() -> None:
    data = json.loads(CliRunner().invoke(app, ["doctor", "--device", "cpu", "--json"]).stdout)
    assert list(data) == ["machine", "memory", "hardware", "backends", "optimizations", "ceilings"]
    assert {"memory copy", "memory read", "disk read"} <= {one["name"] for one in data["ceilings"]}
    assert {one["name"] for one in data["optimizations"]} >= {"flash_attention", "tensor_compression"}


def test_without_measuring_there_are_no_ceilings() -> None:
    data = json.loads(CliRunner().invoke(app, ["doctor", "--no-measure", "--json", "--quiet"]).stdout)
    assert "ceilings" not in data
