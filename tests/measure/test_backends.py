from __future__ import annotations

import pytest
import torch

from inference_pio.errors import InvalidSetting
from inference_pio.measure.backends import find_backends, memory_of, usable_device


def test_each_backend_is_there_or_says_why_not() -> None:
    found = {backend.name: backend.missing for backend in find_backends()}
    assert list(found) == ["CUDA", "Triton", "bfloat16 matmul on the CPU", "int8 packed matmul on the CPU"]
    assert (found["CUDA"] is None) == torch.cuda.is_available()
    assert all(missing is None or missing for missing in found.values())


def test_they_are_plain_data() -> None:
    assert all(list(backend.to_json()) == ["name", "missing", "serves"] for backend in find_backends())


def test_without_a_name_the_best_device_is_taken() -> None:
    assert usable_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert usable_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["moon", "cuda:99", "meta", ""])
def test_a_device_that_is_not_there_is_told(name: str) -> None:
    with pytest.raises(InvalidSetting, match="device="):
        usable_device(name)


def test_memory_is_told_in_bytes() -> None:
    found = memory_of(torch.device("cpu"))
    assert 0 < found["memory_free_bytes"] < found["memory_bytes"]
