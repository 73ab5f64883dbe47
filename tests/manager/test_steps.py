"""A step asks for its sites again on the live model, checks, acts, and writes its receipt."""

from __future__ import annotations

import pytest
import torch

from inference_pio.errors import InvalidModel
from tests.sweep import Case


def test_a_receipt_counts_bytes_before_and_after() -> None:
    case = Case("llama", torch.bfloat16)
    case.apply("tensor_compression")
    receipt = case.manager.get_receipts(case.model)[0]
    assert receipt.weight_bytes_after < 0.8 * receipt.weight_bytes_before
    assert receipt.parked_bytes > 0
    assert receipt.seconds > 0
    assert receipt.backend
    assert "MB saved" in str(receipt)


def test_preflight_refuses_before_the_first_write() -> None:
    case = Case("llama")
    weight = case.model.model.layers[1].mlp.down_proj.weight
    kept = weight.detach()[3, 3].clone()
    with torch.no_grad():
        weight[3, 3] = float("nan")
    with pytest.raises(InvalidModel, match=r"layers\.1\.mlp\.down_proj\.weight holds NaN"):
        case.apply("tensor_compression")
    with torch.no_grad():
        weight[3, 3] = kept
    case.check_untouched()
