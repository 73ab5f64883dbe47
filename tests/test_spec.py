"""The documented snippets run as they stand, in document order, in one namespace."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import inference_pio
from inference_pio.contract.config import OptimizationConfig
from inference_pio.manager import get_optimization_manager
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny

USAGE = Path(__file__).parents[1] / "docs" / "usage.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def snippets() -> list[str]:
    return BLOCK.findall(USAGE.read_text(encoding="utf-8"))


@pytest.fixture
def _defaults_come_back() -> Iterator[None]:
    manager = get_optimization_manager()
    yield
    for name in manager.get_available_optimizations():
        manager.configure_optimization(name, OptimizationConfig(name=name))


def namespace(name: str) -> dict[str, Any]:
    """The documented names, and the models that the snippets speak of."""
    documented = {each: getattr(inference_pio, each) for each in inference_pio.__all__}
    return documented | {"model": tiny.build(name), "model1": tiny.build(name), "model2": tiny.build(name, seed=1)}


@pytest.mark.usefixtures("_defaults_come_back")
@pytest.mark.parametrize("name", ["qwen3", "glm4_moe", "llama"])
def test_the_snippets_run_unchanged_in_document_order(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    known = namespace(name)
    model, before, answers = known["model"], fingerprint(known["model"]), tiny.logits(known["model"], name)
    for snippet in snippets():
        exec(compile(snippet, str(USAGE), "exec"), known)
    assert "plan for" in capsys.readouterr().out
    assert known["model"] is known["optimized_model"] is known["clean_model"] is model
    assert known["status"]["applied"] == ["tensor_compression", "flash_attention", "kernel_fusion"]
    for each in ("model1", "model2"):
        assert known["manager"].get_model_optimizations(known[each]) == [
            "tensor_compression",
            "flash_attention",
            "kernel_fusion",
        ]
        assert known[f"optimized_{each}"] is known[each]
    assert before.differences(fingerprint(model)) == []
    assert torch.equal(tiny.logits(model, name), answers)


def test_the_page_holds_the_patterns_of_the_specification() -> None:
    text = "".join(snippets())
    for line in (
        "from src.inference_pio.common.optimization.optimization_integration import apply_glm_optimizations",
        'optimized_model = apply_glm_optimizations(model, profile_name="balanced")',
        'model = apply_qwen_optimizations(model, profile_name="performance")  # Speed-focused',
        'model = apply_qwen_optimizations(model, profile_name="memory_efficient")  # Memory-focused',
        "from src.inference_pio.common.optimization.optimization_manager import OptimizationConfig, OptimizationType",
        '    parameters={"use_triton": True}',
        'manager.configure_optimization("flash_attention", config)',
        'optimized_model = manager.apply_optimizations(model, ["flash_attention"])',
        "    model_family=ModelFamily.GLM,",
        "optimized_model1 = pipeline(model1)",
        "status = get_model_optimization_status(model)",
        "clean_model = reset_model_optimizations(model)",
    ):
        assert f"{line}\n" in text


def test_snippets_on_a_model_of_another_family_leave_a_word_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "inference_pio"):
        exec(compile(snippets()[0], str(USAGE), "exec"), {"model": tiny.build("llama")})
    assert "of the LLAMA family, and it is optimized with the defaults of GLM" in caplog.text
