from __future__ import annotations

import pytest
import torch

from inference_pio.errors import UnknownName
from inference_pio.measure.hardware import class_of_gpu, hardware_of

GIB = 2**30


@pytest.mark.parametrize(
    ("name", "capability", "gib", "expected", "told"),
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), 79.2, "hopper", "compute capability 9.0, 79 GiB"),
        ("NVIDIA B200", (10, 0), 180, "hopper", "newer than Hopper, and not measured"),
        ("NVIDIA A100", (8, 0), 79.2, "ampere_ada", "compute capability 8.0"),
        ("NVIDIA GeForce RTX 4090", (8, 9), 23.6, "ampere_ada", "24 GiB"),
        ("Tesla V100", (7, 0), 31.7, "ampere_ada", "older than Ampere, and not measured"),
        ("NVIDIA GeForce RTX 4080", (8, 9), 15.99, "small_gpu", "at most 16 GB"),
        ("a slice of an H100", (9, 0), 9.75, "small_gpu", "at most 16 GB"),
    ],
)
def test_a_gpu_is_classed_by_its_memory_and_its_compute_capability(
    name: str, capability: tuple[int, int], gib: float, expected: str, told: str
) -> None:
    found = class_of_gpu(name, capability, int(gib * GIB))
    assert found.name == expected
    assert name in found.why
    assert told in found.why


def test_a_model_on_the_cpu_is_of_the_class_cpu_whatever_gpu_is_there() -> None:
    assert str(hardware_of(torch.device("cpu"))) == "cpu (the device is cpu, no NVIDIA GPU)"


def test_a_gpu_of_another_maker_is_of_the_class_cpu_though_torch_calls_it_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert str(hardware_of(torch.device("cuda"))) == "cpu (the device is cuda by ROCm, no NVIDIA GPU)"


def test_what_is_asked_for_goes_before_what_is_found() -> None:
    assert hardware_of(torch.device("cpu"), "hopper").to_json() == {"name": "hopper", "why": "as asked for"}
    with pytest.raises(UnknownName, match="hardware class 'gpu'"):
        hardware_of(torch.device("cpu"), "gpu")


@pytest.mark.gpu
def test_the_gpu_that_is_here_has_a_class() -> None:
    assert torch.cuda.get_device_name(0) in hardware_of(torch.device("cuda", 0)).why
