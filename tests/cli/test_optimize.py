from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest
import torch
from typer.testing import CliRunner, Result

import inference_pio
from inference_pio.cli import app
from inference_pio.configuration import GlobalOptimizationProfile, get_config_manager
from inference_pio.integration import guard_text
from inference_pio.integration.side_by_side import SideBySide
from tests import tiny
from tests.model_folder import QUICK, write_model_folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_pio.integration.side_by_side.ProbeSettings", lambda: QUICK)


@pytest.fixture
def _few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_text, "TOKENS", 128)
    monkeypatch.setattr(guard_text, "WINDOW", 65)


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


def test_within_a_budget_it_is_optimized_as_it_loads_and_not_measured(llama_folder: Path) -> None:
    words = (str(llama_folder), "--profile", "memory_efficient", "--disable", "tensor_compression")
    answer = optimized(*words, "--host-budget", "80%", "--no-measure", "--json")
    assert answer.exit_code == 0, answer.output
    assert "disk_offloading" in [receipt["name"] for receipt in json.loads(answer.stdout)["receipts"]]
    assert "plan for" in answer.stderr
    measured = optimized(*words, "--host-budget", "80%")
    assert measured.exit_code == 2
    assert "add --no-measure" in " ".join(measured.stderr.replace("│", " ").split())


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
    assert "[red]tiny[" in "".join(answer.stdout.replace("│", "").split())  # wherever lines are broken


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
        name="aiming", default_settings={"tensor_compression": {}}, performance_targets={"latency_reduction": 0.99},
        hardware={"cpu": {"performance_targets": {"memory_efficiency": wanted}}},
    )  # fmt: skip
    monkeypatch.setitem(get_config_manager()._profiles, "aiming", profile)
    report = tmp_path / "r.json"
    answer = optimized(str(llama_folder), "--profile", "aiming", "--check-targets", "--json", str(report))
    assert answer.exit_code == code, answer.output
    missed = json.loads(report.read_text())["targets_missed"]
    assert [one["name"] for one in missed] == (["memory_efficiency"] if code else [])
    assert ("target missed: memory_efficiency: 90.0% was wanted" in answer.stderr) == bool(code)
    assert ("no target of profile aiming is missed" in answer.stdout) == (not code)


@pytest.mark.usefixtures("_few_tokens")
def test_a_member_that_breaks_a_bound_is_taken_back_and_the_report_tells_what_each_costs(
    llama_folder: Path, tmp_path: Path
) -> None:
    report = tmp_path / "r.json"
    answer = optimized(str(llama_folder), "--max-kl", "1e-9", "--json", str(report))
    assert answer.exit_code == 0, answer.output
    data = json.loads(report.read_text())
    assert [receipt["name"] for receipt in data["receipts"]] == ["flash_attention", "kernel_fusion"]
    verdict = data["status"]["quality_guard"]
    assert verdict["bounds"] == {"max_kl": 1e-9}
    assert list(verdict["taken_back"]) == ["tensor_compression"]
    for word in ("quality guard", "KL 0 nats/token", "cost: tensor_compression", "taken back"):
        assert word in answer.stdout
    assert data["comparison"]["weight_bytes_ratio"] == 1
    assert "tensor_compression was taken back by the quality guard" in answer.stderr


@pytest.mark.usefixtures("_few_tokens")
def test_an_order_that_breaks_a_bound_is_an_error_with_its_cost(llama_folder: Path) -> None:
    words = ("--no-measure", "--max-kl", "1e-9", "--set", "tensor_compression.format=int8")
    answer = optimized(str(llama_folder), *words)
    assert answer.exit_code == 1
    assert "tensor_compression costs KL" in answer.stderr
    assert "The model is as before the call" in answer.stderr


@pytest.mark.usefixtures("_few_tokens")
def test_a_constraint_that_only_holds_with_what_was_taken_back_is_refused_and_undone(
    llama_folder: Path, tmp_path: Path
) -> None:
    total = psutil.virtual_memory().total
    plain = sum(one.numel() * 2 for one in tiny.build("llama").parameters())
    file = tmp_path / "mine.yaml"
    file.write_text(f"""\
name: tight
default_settings: {{flash_attention: , tensor_compression: }}
resource_constraints: {{max_memory_usage_ratio: {0.9 * plain / total!r}}}
""")
    answer = optimized(str(llama_folder), "--no-measure", "--profile", str(file))
    assert answer.exit_code == 0, answer.output
    answer = optimized(str(llama_folder), "--no-measure", "--profile", str(file), "--max-kl", "1e-9")
    assert answer.exit_code == 1
    assert "tensor_compression was left out: taken back by the quality guard" in answer.stderr
    assert "The model is as before the call" in answer.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--profile", "fast"], "unknown profile"),
        (["--hardware", "gpu"], "unknown hardware class"),
        (["--max-kl", "0"], "max_kl: Input should be greater than 0"),
        (["--max-perplexity-ratio", "0.5"], "max_perplexity_ratio: Input should be greater than or equal to 1"),
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
