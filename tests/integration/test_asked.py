from __future__ import annotations

from pathlib import Path

import pytest
import torch

import inference_pio
from inference_pio.errors import SourceError, UnknownName
from inference_pio.integration.asked import Asked
from inference_pio.integration.targets import Changes
from inference_pio.manager import get_optimization_manager
from tests import tiny


def test_a_source_is_opened_in_the_dtype_asked_for_or_another(llama_folder: Path) -> None:
    asked = Asked(str(llama_folder))
    assert asked.open(progress=False).model.dtype == torch.bfloat16
    assert asked.open(torch.float32, progress=False).model.dtype == torch.float32
    assert Asked(str(llama_folder), dtype="auto").open(progress=False).model.dtype == torch.float32


def test_what_is_asked_is_planned_and_done(llama_folder: Path) -> None:
    asked = Asked(str(llama_folder), "lossless", Changes(enable=("tensor_compression",)))
    opened = asked.open(progress=False)
    plan = asked.plan(opened)
    assert plan.model == "tiny-llama"
    assert [step.name for step in plan.steps] == ["tensor_compression", "flash_attention", "kernel_fusion"]
    assert get_optimization_manager().get_model_optimizations(opened.model) == []
    asked.apply(opened)
    assert get_optimization_manager().get_model_optimizations(opened.model) == [
        "tensor_compression",
        "flash_attention",
        "kernel_fusion",
    ]


@pytest.mark.parametrize(
    ("profile", "changes"),
    [("fast", Changes()), ("balanced", Changes(enable=("flash",))), ("balanced", Changes(parameters={"flash": {}}))],
)
def test_wrong_names_are_told_before_anything_is_opened(profile: str, changes: Changes) -> None:
    with pytest.raises(UnknownName):
        Asked("./there-is-no-such-model", profile, changes)


def test_a_saved_optimized_model_is_not_optimized_again(tmp_path: Path) -> None:
    folder = inference_pio.save(inference_pio.optimize(tiny.build("llama")), tmp_path / "saved")
    with pytest.raises(SourceError, match="optimized already"):
        Asked(str(folder))
