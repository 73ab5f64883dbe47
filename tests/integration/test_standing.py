from __future__ import annotations

import pytest
from torch import nn

from inference_pio.errors import InvalidModel
from inference_pio.integration import apply_qwen_optimizations, restore
from inference_pio.integration.standing import Standing, back_on_error
from inference_pio.manager import get_optimization_manager
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny


def test_a_bare_model_stands_with_nothing() -> None:
    assert Standing.of(tiny.build("llama")) == Standing((), None)


def test_what_stood_is_brought_back() -> None:
    model = apply_qwen_optimizations(tiny.build("qwen3"), "lossless")
    standing = Standing.of(model)
    apply_qwen_optimizations(model, "balanced")
    standing.bring_back(model)
    assert get_optimization_manager().get_model_optimizations(model) == ["flash_attention", "kernel_fusion"]
    assert get_optimization_manager().get_optimization_status(model)["profile"] == "lossless"
    assert Standing.of(model) == standing


def test_bringing_back_what_stands_touches_nothing() -> None:
    model = apply_qwen_optimizations(tiny.build("qwen3"), "balanced")
    receipts = get_optimization_manager().get_receipts(model)
    Standing.of(model).bring_back(model)
    assert get_optimization_manager().get_receipts(model) == receipts


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_brings_back_what_stood(error: type[BaseException]) -> None:
    model = tiny.build("qwen3")
    before = fingerprint(model)
    with pytest.raises(error):
        optimize_and_fail(model, error)
    assert before.differences(fingerprint(model)) == []


def optimize_and_fail(model: nn.Module, error: type[BaseException]) -> None:
    with back_on_error(model):
        apply_qwen_optimizations(model)
        raise error


def test_without_an_error_all_stays() -> None:
    model = tiny.build("qwen3")
    with back_on_error(model):
        apply_qwen_optimizations(model, "lossless")
    assert get_optimization_manager().get_model_optimizations(model) == ["flash_attention", "kernel_fusion"]
    restore(model)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(InvalidModel):
        Standing.of("llama")
