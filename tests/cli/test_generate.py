from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import inference_pio
from inference_pio.cli import app
from tests import tiny


def generated(*words: str) -> Result:
    return CliRunner().invoke(app, ["generate", *words])


def test_text_comes_on_standard_output_with_how_fast_it_came(llama_folder: Path) -> None:
    answer = generated(str(llama_folder), "--prompt", "def f(x):", "--max-new-tokens", "6")
    assert answer.exit_code == 0, answer.output
    assert "(6 tokens, the first after " in answer.stdout


def test_the_json_holds_text_plan_and_receipts(llama_folder: Path) -> None:
    words = ("--prompt", "def f(x):", "--max-new-tokens", "6", "--profile", "lossless", "--json")
    answer = generated(str(llama_folder), *words)
    data = json.loads(answer.stdout)
    assert (data["prompt"], data["new_tokens"], data["profile"]) == ("def f(x):", 6, "lossless")
    assert [receipt["name"] for receipt in data["receipts"]] == ["flash_attention", "kernel_fusion"]
    assert data["text"] in answer.stderr


def test_plain_applies_nothing(llama_folder: Path) -> None:
    words = ("--prompt", "def", "--max-new-tokens", "3", "--plain", "--json")
    data = json.loads(generated(str(llama_folder), *words).stdout)
    assert (data["profile"], data["plan"], data["receipts"]) == (None, None, [])


def test_within_a_budget_a_model_streams_and_says_the_same(llama_folder: Path) -> None:
    words = (
        str(llama_folder),
        "--prompt",
        "def f(x):",
        "--max-new-tokens",
        "6",
        "--disable",
        "kernel_fusion",
        "--json",
    )
    whole = json.loads(generated(*words, "--disable", "tensor_compression").stdout)
    answer = generated(*words, "--disable", "tensor_compression", "--host-budget", "80%")
    assert answer.exit_code == 0, answer.output
    data = json.loads(answer.stdout)
    assert data["text"] == whole["text"]
    assert [receipt["name"] for receipt in data["receipts"]] == ["flash_attention", "disk_offloading"]
    assert [step["name"] for step in data["plan"]["steps"]] == ["flash_attention", "disk_offloading"]


def test_a_budget_that_a_profile_would_break_is_refused(llama_folder: Path) -> None:
    answer = generated(str(llama_folder), "--prompt", "def", "--profile", "lossless", "--host-budget", "80%")
    assert answer.exit_code == 1
    assert "kernel_fusion would have the whole model in memory" in answer.stderr
    plain = generated(str(llama_folder), "--prompt", "def", "--plain", "--host-budget", "80%")
    assert plain.exit_code == 2
    coded = generated(str(llama_folder), "--prompt", "def", "--trust-remote-code", "--host-budget", "80%")
    assert coded.exit_code == 1
    assert "is loaded whole" in coded.stderr


def test_a_saved_model_runs_as_it_is(tmp_path: Path) -> None:
    from tests.model_folder import byte_tokenizer

    folder = inference_pio.save(inference_pio.optimize(tiny.build("llama")), tmp_path / "saved", byte_tokenizer())
    answer = generated(str(folder), "--prompt", "def", "--max-new-tokens", "3", "--json")
    assert answer.exit_code == 0, answer.output
    data = json.loads(answer.stdout)
    assert data["new_tokens"] == 3
    assert [receipt["name"] for receipt in data["receipts"]] == [
        "tensor_compression",
        "flash_attention",
        "kernel_fusion",
    ]
    refused = generated(
        str(folder), "--prompt", "def", "--profile", "lossless", "--set", "flash_attention.use_triton=true"
    )
    assert refused.exit_code == 1
    assert "runs as it was saved: leave --profile, --set out" in refused.stderr
    assert refused.stdout == ""


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], 2, "--prompt"),
        (["--prompt", "x", "--max-new-tokens", "0"], 2, "--max-new-tokens"),
        (["--prompt", "x", "--max-new-tokens", "many"], 2, "--max-new-tokens"),
        (["--prompt", "", "--no-chat"], 1, "the prompt holds no token"),
        (["--prompt", "x", "--profile", "fast"], 1, "unknown profile"),
    ],
)
def test_what_is_wrong_is_told(llama_folder: Path, words: list[str], code: int, told: str) -> None:
    answer = generated(str(llama_folder), *words)
    assert answer.exit_code == code
    assert told in answer.stderr


def test_without_a_tokenizer_it_is_refused(mute_folder: Path) -> None:
    answer = generated(str(mute_folder), "--prompt", "x")
    assert answer.exit_code == 1
    assert "has no tokenizer" in answer.stderr
