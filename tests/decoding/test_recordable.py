"""The operations that never ask the host: near the library within rounding, alike on a GPU and in a graph."""

from __future__ import annotations

import pytest
import torch

from inference_pio.decoding.recordable import RecordableOperations
from tests.decoding.conftest import COMPOSED, prompt, taken
from tests.decoding.test_step import both


def near(name: str, dtype: torch.dtype, padded: int, device: str = "cpu") -> None:
    found, expected = both(name, dtype, padded, RecordableOperations(), device)
    largest = expected.abs().max().item()
    tolerance = 2e-6 if dtype == torch.float32 and device == "cpu" else 2e-3 if dtype == torch.float32 else 0.03
    assert (found - expected).abs().max().item() <= tolerance * largest


@pytest.mark.parametrize("padded", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", COMPOSED)
def test_it_is_near_the_library(name: str, dtype: torch.dtype, padded: int) -> None:
    near(name, dtype, padded)


@pytest.mark.parametrize("name", COMPOSED)
def test_it_never_asks_how_long_the_cache_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for reader in ("__int__", "item", "tolist", "__bool__"):
        original = getattr(torch.Tensor, reader)
        monkeypatch.setattr(torch.Tensor, reader, lambda self, o=original, r=reader: asked.append(r) or o(self))
    one = taken(name, operations=RecordableOperations())
    one.model.generate(**prompt(), max_new_tokens=2, do_sample=False, pad_token_id=0)  # builds and checks
    (runner,) = one.engine._buckets[2, None].runners.values()
    asked.clear()
    runner.run()
    reads = {reader for reader in asked if reader != "tolist"}
    experts = {"qwen3_moe", "glm4_moe", "glm4_moe_lite"}  # the library's own experts may count on a CPU
    assert not reads or name in experts


@pytest.mark.gpu
@pytest.mark.parametrize("padded", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", COMPOSED)
def test_it_is_near_the_library_on_a_gpu(name: str, dtype: torch.dtype, padded: int) -> None:
    near(name, dtype, padded, "cuda")
