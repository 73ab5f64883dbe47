"""Every suite walks through, slices go on where they stopped, and a wish that cannot be met is told."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from benchmarks.suites import SUITES

from benchmarks import results, run, waves

NEED_A_GPU = {
    "cudnn", "efficient", "flash-only", "liger", "plain-flash-only", "plain-no-cudnn", "torchao-fp8", "torchao-int4",
    "torchao-int8-tuned", "triton", "triton-best", "pio-built", "pio-window", "pio-selected",
    "pio-selected-mean", "pio-selection",
    "pio-budget", "pio-budget-x4", "pio-pages", "pio-graph-budget",
    "pio-graph-waiting", "pio-graph-two", "pio-graph-products",
    "library-kv-offload", "pio-kv-host", "pio-kv-host-third",
    "pio-gemv", "pio-rule", "pio-tuned", "pio-dependent", "pio-kernels",
    "described", "pointers", "padded", "listed", "4:1", "8:1",
}  # fmt: skip


def smoke(suite: str, out: Path, *words: str) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own words: uncompiled FlexAttention, offloading
        return run.main([suite, "--smoke", "--out", str(out), *words])


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_every_system_of_every_suite_is_right_or_says_why_not(suite: str, tmp_path: Path) -> None:
    assert smoke(suite, tmp_path / "out.json") == 0
    found = results.read(tmp_path / "out.json")
    assert list(found["arms"])
    assert set(found["arms"]) == set(SUITES[suite].arms)
    for name, arm in found["arms"].items():
        if name in NEED_A_GPU or "is not installed" in arm["reason"]:
            assert arm["status"] == "unavailable"
        elif name == "pio-disk-offloading" and arm["status"] == "failed":
            assert "unknown optimization" in arm["reason"]  # until it ships
        else:
            assert arm["status"] == "ok", f"{name}: {arm['reason']}"
            assert all(row["median"] > 0 for row in arm["cases"].values())


def test_models_in_two_factors_are_right_for_weights_of_that_rank(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arms = "plain,pio-decomposed,pio-decomposed-pivoted,pio-decomposed-mlp"
    assert smoke("decode-qwen3-4b", out, "--arms", arms) == 0
    for name, arm in results.read(out)["arms"].items():
        assert arm["status"] == "ok", f"{name}: {arm['reason']}"


@pytest.mark.parametrize("suite", ["decode-qwen3-4b", "prefill-qwen3-4b"])
def test_a_pruned_model_is_right_where_what_went_said_nothing(suite: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert smoke(suite, out, "--arms", "plain,pio-pruned") == 0
    found = results.read(out)["arms"]
    assert found["pio-pruned"]["status"] == "ok", found["pio-pruned"]["reason"]
    assert any("96 before, 72 now" in note for note in found["pio-pruned"]["notes"])


def test_a_resumed_run_measures_only_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    smoke("decode-qwen3-4b", out, "--arms", "plain")
    before = results.read(out)
    smoke("decode-qwen3-4b", out, "--arms", "plain,graph-eager", "--resume")
    after = results.read(out)
    assert after["arms"]["plain"] == before["arms"]["plain"]
    assert [wave["arms"] for wave in after["waves"]] == [["plain"], ["graph-eager"]]
    smoke("decode-qwen3-4b", out, "--arms", "plain", "--resume", "--again", "plain")
    assert results.read(out)["arms"]["plain"] != before["arms"]["plain"]
    assert results.read(out)["arms"]["graph-eager"] == after["arms"]["graph-eager"]


def test_other_settings_are_not_mixed_into_a_resumed_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    smoke("decode-qwen3-4b", out, "--arms", "plain")
    found = json.loads(out.read_text())
    found["settings"]["new_tokens"] = 999
    out.write_text(json.dumps(found))
    assert smoke("decode-qwen3-4b", out, "--arms", "graph-eager", "--resume") == 2
    assert "another settings" in capsys.readouterr().err


def test_a_slice_without_time_leaves_the_rest_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    smoke("decode-qwen3-4b", tmp_path / "out.json", "--minutes", "0.1")
    assert "left for the next slice: plain" in capsys.readouterr().out
    assert not (tmp_path / "out.json").exists()


def test_an_unknown_system_is_told_with_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke("attention", tmp_path / "out.json", "--arms", "fastest") == 2
    assert "this suite knows cudnn" in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_answers_like_the_inline_worker(tmp_path: Path) -> None:
    smoke("attention", tmp_path / "out.json", "--arms", "flash,cudnn", "--processes")
    arms: dict[str, Any] = results.read(tmp_path / "out.json")["arms"]
    assert (arms["flash"]["status"], arms["cudnn"]["status"]) == ("ok", "unavailable")


def test_check_fails_on_a_share_that_fell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    words = ("decode-qwen3-4b", tmp_path / "fresh.json", "--arms", "plain,pio-lossless")
    smoke(*words)
    recorded = results.read(tmp_path / "fresh.json")
    recorded["arms"]["pio-lossless"]["cases"]["decode"]["median"] *= 100
    results.write(recorded, results.path_of("decode-qwen3-4b", recorded["device"], tmp_path))
    assert smoke(*words, "--check") == 1
    assert "pio-lossless, decode: ratio to plain fell from" in capsys.readouterr().out


def test_waves_hold_what_fits_in_memory_and_time() -> None:
    suite = SUITES["decode-qwen3-30b-a3b"]
    pending = list(suite.arms)
    clock = waves.Clock(0.0, whole=False)
    assert waves.form(suite, pending, 150.0, 1000, clock, 6) == ["plain", "graph-inductor"]
    assert waves.form(suite, pending, 80.0, 1000, clock, 6) == ["plain"]
    assert waves.form(suite, pending, 150.0, 60, clock, 6) == ["plain"]
    assert waves.form(suite, pending, 150.0, 10, clock, 6) == []
    assert waves.form(suite, pending, 150.0, 10, waves.Clock(0.0), 6) == ["plain"]  # first in its slice: now or never
