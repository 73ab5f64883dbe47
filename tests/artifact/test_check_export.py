"""transformers reads an export back, and answers as the model that it was made from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from inference_pio.artifact import check_export, export
from inference_pio.errors import ArtifactError, MissingExtra
from tests import tiny
from tests.artifact.help import plain_twin
from tests.artifact.test_export import MODELS, compressed
from tests.quality import reference_models

OTHERS = pytest.mark.filterwarnings("ignore")  # those of the package that reads
REASON = "the extra export is not installed"


@OTHERS
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("parameters", "most"), [
    ({"format": "int8"}, 1e-6), ({"format": "fp8"}, 1e-6), ({"format": "int4"}, 0.02),
])  # fmt: skip
def test_answers_are_those_of_the_weights(name: str, parameters: dict[str, Any], most: float, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason=REASON)
    model = compressed(reference_models.load(name, torch.float32), **parameters)
    made = export(model, tmp_path / "out")
    tokens = reference_models.draw(0, 1, 128)
    other = type(model).from_pretrained(made.folder, dtype=torch.float32).eval()
    twin = plain_twin(model, reference_models.load(name, torch.float32))
    with torch.no_grad():
        answer, wanted = other(tokens).logits, twin(tokens).logits
    if parameters["format"] == "fp8" and _reads_fp8_experts_in_bfloat16(other, twin):
        most = 5e-3
    assert (answer - wanted).norm() / wanted.norm() <= most


def _reads_fp8_experts_in_bfloat16(other: Any, twin: Any) -> bool:
    """transformers 5.17 makes experts of fp8 in bfloat16 whatever the model's dtype; nothing else may differ."""
    rounded, read = False, other.state_dict()
    for name, wanted in twin.state_dict().items():
        if not torch.equal(read[name], wanted):
            assert name.endswith(("experts.gate_up_proj", "experts.down_proj"))
            assert torch.equal(read[name], wanted.bfloat16().float()), name
            rounded = True
    return rounded


@OTHERS
@pytest.mark.parametrize(("parameters", "int4", "most"), [
    ({"format": "int8"}, "wide", 1e-3),
    ({"format": "int4", "group_size": 32, "head": True}, "symmetric", 0.06),
    ({"format": "fp8", "head": True, "skip": ["model.layers.1"]}, "wide", 1e-3),
    ({"format": "int8", "targets": ["experts"]}, "wide", 1e-3),
])  # fmt: skip
def test_the_check_tells_how_near_the_answers_are(
    parameters: dict[str, Any], int4: Any, most: float, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors", reason=REASON)
    model = compressed(reference_models.load("qwen3_moe"), **parameters)
    made = export(model, tmp_path / "out", int4=int4)
    quality = check_export(model, made.folder, reference_models.draw(1, 2, 256))
    assert quality.kl_nats_per_token < most
    assert quality.tokens == 510


@OTHERS
def test_an_export_that_transformers_does_not_read_is_told(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason=REASON)
    model = compressed(reference_models.load("qwen3_moe"), format="int4")
    made = export(model, tmp_path / "out", int4="asymmetric")
    with pytest.raises(ArtifactError, match="transformers does not read"):
        check_export(model, made.folder, reference_models.draw(1, 1, 64))


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    with pytest.raises(MissingExtra, match=r"inference-pio\[export\]"):
        check_export(tiny.build("llama"), tmp_path, torch.zeros(1, 8, dtype=torch.int64))
