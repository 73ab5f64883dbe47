"""A manifest is plain JSON, checked before anything is built from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inference_pio.artifact import save
from inference_pio.artifact.manifest import FILE, read_manifest
from inference_pio.errors import ArtifactError
from tests.sweep import TOGETHER, Case


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    case = Case("llama")
    case.apply(*TOGETHER)
    return save(case.model, tmp_path / "saved")


def test_a_manifest_survives_the_round_trip(saved: Path) -> None:
    manifest = read_manifest(saved)
    assert json.loads(manifest.to_bytes()) == json.loads((saved / FILE).read_text())
    assert {step.name for step in manifest.steps} == set(TOGETHER)


@pytest.mark.parametrize("change", ["not json", "{}", '{"model_class": "os.system"}'])
def test_a_manifest_that_is_not_one_is_refused(saved: Path, change: str) -> None:
    (saved / FILE).write_text(change)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_manifest(saved)


def test_a_class_name_cannot_be_a_path_to_code(saved: Path) -> None:
    data = json.loads((saved / FILE).read_text())
    (saved / FILE).write_text(json.dumps({**data, "model_class": "os.path"}))
    with pytest.raises(ArtifactError):
        read_manifest(saved)


def test_a_folder_that_holds_no_saved_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="from_pretrained"):
        read_manifest(tmp_path)


def test_a_verdict_that_is_none_is_told_as_the_files_fault(saved: Path) -> None:
    told = json.loads((saved / FILE).read_text())
    for verdict in ({"kl": 1}, {"costs": []}, "far"):
        told["plan"]["verdict"] = verdict
        (saved / FILE).write_text(json.dumps(told))
        with pytest.raises(ArtifactError, match="save the model again"):
            read_manifest(saved)
