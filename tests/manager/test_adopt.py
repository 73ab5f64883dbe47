"""A model that comes optimized already knows what was done to it, and that there is no way back here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inference_pio.errors import RefusedOnOptimized
from inference_pio.manager.adopt import adopt
from tests import tiny
from tests.sweep import Case


def test_an_adopted_model_tells_its_receipts_and_refuses_an_ordinary_save(tmp_path: object) -> None:
    case = Case("llama")
    case.apply("tensor_compression")
    receipts = [replace(receipt, reversible=False) for receipt in case.manager.get_receipts(case.model)]
    other = tiny.build("llama")
    adopt(other, receipts, "no: originals not here")
    status = case.manager.get_optimization_status(other)
    assert (status["applied"], status["reversible"]) == (["tensor_compression"], "no: originals not here")
    with pytest.raises(RefusedOnOptimized):
        other.save_pretrained(str(tmp_path))
    case.manager.apply_optimizations(other, ["flash_attention"])
    case.manager.remove_optimizations(other)
    assert case.manager.get_model_optimizations(other) == ["tensor_compression"]
