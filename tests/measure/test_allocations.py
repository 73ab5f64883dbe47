from __future__ import annotations

import pytest
import torch

from inference_pio.measure.allocations import peak_allocated

CPU = torch.device("cpu")
BLOCK = 2**20


def test_the_most_at_once_is_counted_not_the_sum() -> None:
    with peak_allocated(CPU) as peak:
        for _ in range(5):
            torch.ones(BLOCK, dtype=torch.uint8)
        kept = [torch.ones(BLOCK, dtype=torch.uint8) for _ in range(2)]
        del kept
    assert 2 * BLOCK <= peak.peak_bytes < 2.1 * BLOCK
    assert peak.to_json()["method"] == "torch's CPU allocations, by its profiler"


def test_what_was_there_before_is_not_in_it_and_what_lies_inside_an_operation_is() -> None:
    before = torch.randn(1024, 512)
    with peak_allocated(CPU) as peak:
        before.sum()
    assert peak.peak_bytes < before.nbytes / 10
    with peak_allocated(CPU) as peak:
        torch.nn.functional.cross_entropy(before, torch.zeros(1024, dtype=torch.long))  # its logarithms are never seen
    assert peak.peak_bytes >= before.nbytes


def test_an_error_inside_comes_through() -> None:
    with pytest.raises(ValueError, match="inside"), peak_allocated(CPU):
        raise ValueError("inside")
