from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import inference_pio
from inference_pio.cli import app
from tests import tiny
from tests.model_folder import byte_tokenizer
from tests.quality.reference_models import FOLDER

QWEN3 = str(FOLDER / "qwen3")


def exported(*words: str) -> Result:
    return CliRunner().invoke(app, ["export", *words])


def test_a_plain_model_is_compressed_and_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = exported(QWEN3, str(out), "--set", "tensor_compression.format=fp8", "--no-check", "--json")
    assert answer.exit_code == 0, answer.output
    data = json.loads(answer.stdout)
    assert (data["formats"], data["quality"], data["weights_moved"]) == ({"fp8 by rows": 35}, None, None)
    assert f"4.0 MB written to {out}" in answer.stderr
    assert "1 kept as they are: lm_head" in answer.stderr
    assert (out / "tokenizer.json").is_file()


def test_what_int4_becomes_is_told_on_quiet_terminals_too(tmp_path: Path) -> None:
    words = ("--set", "tensor_compression.format=int4", "--int4", "symmetric", "--no-check", "--quiet")
    answer = exported(QWEN3, str(tmp_path / "out"), *words)
    assert answer.exit_code == 0, answer.output
    assert answer.stdout == ""
    assert "int4 was rounded anew" in answer.stderr
    assert "int4 weights have moved by 8." in answer.stderr


def test_a_saved_model_is_exported_as_it_is(tmp_path: Path) -> None:
    model = tiny.build("qwen3")
    inference_pio.get_optimization_manager().apply_optimizations(model, ["tensor_compression", "kernel_fusion"])
    folder = inference_pio.save(model, tmp_path / "saved", byte_tokenizer())
    answer = exported(str(folder), str(tmp_path / "out"), "--no-check")
    assert answer.exit_code == 0, answer.output
    assert "modules in int8 by rows" in answer.stdout
    refused = exported(str(folder), str(tmp_path / "other"), "--no-check", "--dtype", "float32")
    assert refused.exit_code == 1
    assert "as it was saved: leave --dtype out" in refused.stderr
    assert not (tmp_path / "other").exists()


def test_a_pruned_model_is_written_plainly_and_read_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--set", "structured_pruning.pruning_ratio=0.5", "--set", "structured_pruning.tokens=2048")
    answer = exported(QWEN3, str(out), "--format", "hf", *words, "--json")
    assert answer.exit_code == 0, answer.output
    data = json.loads(answer.stdout)
    assert (data["format"], data["formats"]) == ("hf", {"bfloat16": 57})
    assert data["quality"]["kl_nats_per_token"] == 0
    assert data["quality"]["top1_agreement"] == 1
    assert "57 tensors in bfloat16" in answer.stderr
    assert json.loads((out / "config.json").read_text())["intermediate_size"] == 256
    assert (out / "tokenizer.json").is_file()


@pytest.mark.filterwarnings("ignore")  # those of the package that reads
def test_the_checkpoint_is_read_back_and_compared(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="the extra export is not installed")
    answer = exported(QWEN3, str(tmp_path / "out"), "--json")
    assert answer.exit_code == 0, answer.output
    data = json.loads(answer.stdout)
    assert data["quality"]["kl_nats_per_token"] < 1e-3
    assert "read back by transformers: KL 0.000" in answer.stderr
    words = ("--set", "tensor_compression.format=int4", "--int4", "asymmetric")
    answer = exported(str(FOLDER / "qwen3_moe"), str(tmp_path / "zeros"), *words)
    assert answer.exit_code == 0, answer.output
    assert "not checked: transformers does not read" in answer.stdout


def test_without_the_package_it_is_written_unchecked_unless_the_check_is_an_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    refused = exported(QWEN3, str(tmp_path / "out"), "--check")
    assert refused.exit_code == 1
    assert "inference-pio[export]" in refused.stderr
    assert not (tmp_path / "out").exists()
    answer = exported(QWEN3, str(tmp_path / "out"))
    assert answer.exit_code == 0, answer.output
    assert "not checked: reading an exported checkpoint back needs the package" in answer.stdout


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--set", "flash_attention.use_triton=true"], 1, "flash_attention changes nothing that is exported"),
        (["--set", "tensor_compression.format=int3"], 1, "int3"),
        (["--set", "tensor_compression.targets=[]", "--set", "tensor_compression.kv_cache=int8"], 1, "no compressed"),
        (["--format", "gguf"], 2, "gguf"),
        (["--format", "hf", "--set", "tensor_compression.format=int8"], 1, "set structured_pruning's parameters alone"),
        (["--int4", "round"], 2, "round"),
    ],
)
def test_what_is_wrong_is_told_and_leaves_nothing(words: list[str], code: int, told: str, tmp_path: Path) -> None:
    answer = exported(QWEN3, str(tmp_path / "out"), "--no-check", *words)
    assert answer.exit_code == code
    assert told in answer.stderr
    assert "Traceback" not in answer.output
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    answer = exported(QWEN3, str(tmp_path), "--no-check")
    assert answer.exit_code == 1
    assert "is not empty" in answer.stderr
