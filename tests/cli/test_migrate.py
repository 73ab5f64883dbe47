from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner, Result

from inference_pio.cli import app
from inference_pio.configuration import ModelOptimizationConfig
from inference_pio.configuration.reading import read_settings

OLD = """\
use_flash_attention_2: true
use_quantization: true
quantization_bits: 8
enable_kernel_fusion: true
use_fused_layer_norm: false
"""


def migrated(*words: str) -> Result:
    return CliRunner().invoke(app, ["migrate", *words])


def old_file(folder: Path) -> Path:
    path = folder / "old.yaml"
    path.write_text(OLD)
    return path


def test_the_new_file_stands_beside_the_old_one_and_what_changed_is_told(tmp_path: Path) -> None:
    answer = migrated(str(old_file(tmp_path)))
    assert answer.exit_code == 0, answer.output
    new = tmp_path / "old.new.yaml"
    config = read_settings(new, ModelOptimizationConfig)
    assert {member.name for member in config.enabled} >= {"flash_attention", "tensor_compression"}
    assert "changed: use_quantization" in answer.stdout
    assert f"written to {new}" in answer.stdout
    assert (tmp_path / "old.yaml").read_text() == OLD


def test_a_flag_without_a_counterpart_is_told_never_dropped(tmp_path: Path) -> None:
    old, new = old_file(tmp_path), tmp_path / "deep" / "new.yaml"
    answer = migrated(str(old), str(new), "--json")
    assert answer.exit_code == 0, answer.output
    data = json.loads(answer.stdout)
    assert "use_fused_layer_norm" in [one["key"] for one in data["unmatched"]]
    assert "not carried over: use_fused_layer_norm" in answer.stderr
    assert new.is_file()


def test_what_is_not_carried_over_is_told_on_quiet_terminals_too(tmp_path: Path) -> None:
    answer = migrated(str(old_file(tmp_path)), "--quiet")
    assert answer.exit_code == 0, answer.output
    assert answer.stdout == ""
    told = answer.stderr.splitlines()
    assert told
    assert all(line.startswith("not carried over: ") for line in told)


def test_a_file_that_is_there_is_kept_unless_it_is_to_be_overwritten(tmp_path: Path) -> None:
    old, new = old_file(tmp_path), tmp_path / "new.yaml"
    new.write_text("mine")
    answer = migrated(str(old), str(new))
    assert answer.exit_code == 1
    assert "is there already" in answer.stderr
    assert new.read_text() == "mine"
    assert migrated(str(old), str(new), "--overwrite").exit_code == 0
    assert new.read_text() != "mine"


def test_a_document_of_today_is_not_migrated(tmp_path: Path) -> None:
    migrated(str(old_file(tmp_path)))
    answer = migrated(str(tmp_path / "old.new.yaml"))
    assert answer.exit_code == 1
    assert "nothing to migrate" in answer.stderr
