from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import inference_pio
from inference_pio.cli import app
from inference_pio.configuration import GlobalOptimizationProfile, get_config_manager
from inference_pio.integration.side_by_side import SideBySide
from tests import tiny
from tests.model_folder import QUICK, write_model_folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_pio.integration.side_by_side.ProbeSettings", lambda: QUICK)


def optimized(*words: str) -> Result:
    return CliRunner().invoke(app, ["optimize", *words])


def test_the_main_job_prints_plan_receipts_and_table_writes_json_and_saves(llama_folder: Path, tmp_path: Path) -> None:
    report, folder = tmp_path / "report.json", tmp_path / "saved"
    answer = optimized(str(llama_folder), "--profile", "balanced", "--json", str(report), "--save", str(folder))
    assert answer.exit_code == 0, answer.output
    shown = answer.stdout
    assert shown.index("plan for tiny-llama") < shown.index("done: tensor_compression") < shown.index("tokens/s")
    for word in ("plain float32", "plain bfloat16", "optimized", "ratio", "the decode ratio is against plain"):
        assert word in shown
    for row in ("decode, tokens/s", "prefill, tokens/s", "first token", "weights", "resident", "peak", "perplexity"):
        assert row in shown
    assert "KL from the original" in shown
    assert "top-1 agreement" in shown

    data = json.loads(report.read_text())
    keys = {"model", "profile", "plan", "receipts", "baseline", "optimized", "comparison"}
    assert keys <= data.keys()
    measured = {"decode_tokens_per_s", "prefill_tokens_per_s", "time_to_first_token_s", "weight_bytes"}
    measured |= {"resident_bytes", "peak_bytes", "perplexity"}
    assert measured <= data["baseline"].keys() & data["optimized"].keys()
    compared = {"kl_nats_per_token", "top1_agreement", "decode_speedup", "weight_bytes_ratio", "perplexity_ratio"}
    assert compared <= data["comparison"].keys()

    again = inference_pio.load(folder)
    fresh = tiny.build("llama", dtype=torch.bfloat16)
    assert torch.equal(tiny.logits(again, "llama"), tiny.logits(inference_pio.optimize(fresh), "llama"))


def test_without_measuring_it_only_optimizes(llama_folder: Path, tmp_path: Path) -> None:
    answer = optimized(str(llama_folder), "--no-measure", "--json", "--save", str(tmp_path / "saved"))
    data = json.loads(answer.stdout)
    assert [receipt["name"] for receipt in data["receipts"]] == [
        "tensor_compression",
        "flash_attention",
        "kernel_fusion",
    ]
    assert data["baseline"] is data["comparison"] is None
    assert "done: tensor_compression: " in answer.stderr
    assert (tmp_path / "saved" / "tokenizer.json").is_file()


def test_the_page_and_the_terminal_tell_the_same_status(llama_folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "deep" / "report.html"
    answer = optimized(str(llama_folder), "--no-measure", "--report", str(page), "--json")
    assert answer.exit_code == 0, answer.output
    assert f"report written to {page}" in answer.stderr
    status = json.loads(answer.stdout)["status"]
    assert [one["name"] for one in status["applied_optimizations"]] == [
        "tensor_compression",
        "flash_attention",
        "kernel_fusion",
    ]
    for text in (page.read_text(), answer.stderr):
        assert "tensor_compression, flash_attention, kernel_fusion" in text
        assert "total optimizations available" in text


def test_a_name_with_brackets_is_shown_as_it_is(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "[red]tiny[" / "[b]", tokenizer=False)
    answer = optimized(str(folder), "--no-measure")
    assert answer.exit_code == 0, answer.output
    assert "\\[" not in answer.stdout
    assert "[red]tiny[" in answer.stdout.replace("\n", "")


def test_quiet_says_nothing_and_writes_all(llama_folder: Path, tmp_path: Path) -> None:
    words = ("--quiet", "--json", str(tmp_path / "r.json"), "--report", str(tmp_path / "r.html"))
    answer = optimized(str(llama_folder), *words)
    assert (answer.exit_code, answer.output) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["r.html", "r.json"]
    assert 'data-chart="forest"' in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(("wanted", "code"), [(0.9, 3), (0.0, 0)])
def test_targets_that_are_missed_end_with_a_code_of_their_own(
    llama_folder: Path, tmp_path: Path, wanted: float, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = GlobalOptimizationProfile(
        name="aiming", default_settings={"tensor_compression": {}}, performance_targets={"memory_efficiency": wanted}
    )
    monkeypatch.setitem(get_config_manager()._profiles, "aiming", profile)
    report = tmp_path / "r.json"
    answer = optimized(str(llama_folder), "--profile", "aiming", "--check-targets", "--json", str(report))
    assert answer.exit_code == code, answer.output
    missed = json.loads(report.read_text())["targets_missed"]
    assert [one["name"] for one in missed] == (["memory_efficiency"] if code else [])
    assert ("target missed: memory_efficiency: 90.0% was wanted" in answer.stderr) == bool(code)
    assert ("no target of profile aiming is missed" in answer.stdout) == (not code)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--profile", "fast"], "unknown profile"),
        (["--json", "/proc/report.json"], "cannot write /proc/report.json"),
        (["--save", "/proc/saved"], "cannot write /proc/saved"),
        (["--save", "/usr"], "choose another folder"),
    ],
)
def test_what_cannot_end_well_is_told_before_the_work_begins(
    llama_folder: Path, words: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(SideBySide, "measure")
    answer = optimized(str(llama_folder), *words)
    assert answer.exit_code == 1
    assert told in answer.stderr
    assert answer.stdout == ""


def test_ctrl_c_while_measuring_ends_with_130_and_leaves_no_file(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: SideBySide, *rest: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SideBySide, "_around", interrupted)
    place = tmp_path / "place"
    words = (str(llama_folder), "--json", str(place / "report.json"), "--save", str(place / "saved"))
    answer = optimized(*words)
    assert answer.exit_code == 130
    assert "interrupted" in answer.stderr
    assert not place.exists()


def test_a_saved_model_is_not_optimized_again(tmp_path: Path) -> None:
    inference_pio.save(inference_pio.optimize(tiny.build("llama")), tmp_path / "saved")
    answer = optimized(str(tmp_path / "saved"))
    assert answer.exit_code == 1
    assert "optimized already" in answer.stderr
