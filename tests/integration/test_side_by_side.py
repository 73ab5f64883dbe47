from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from inference_pio.errors import NothingApplied
from inference_pio.integration import side_by_side
from inference_pio.integration.asked import Asked
from inference_pio.integration.measured import NO_QUALITY
from inference_pio.integration.side_by_side import SideBySide
from inference_pio.manager import get_optimization_manager
from tests.model_folder import QUICK


class Heard:
    """Keeps the stages that were told."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def __call__(self, stage: str) -> Callable[[str, float], None]:
        self.stages.append(stage)
        return lambda phase, fraction: None


@pytest.fixture(scope="module")
def run(llama_folder: Path) -> tuple[SideBySide, Heard, side_by_side.Outcome]:
    heard = Heard()
    side = SideBySide(Asked(str(llama_folder)), heard, QUICK)
    side.plan()
    return side, heard, side.measure()


def test_all_are_timed_in_turn_and_then_each_is_measured_alone(run) -> None:
    _, heard, _ = run
    assert heard.stages == ["all in turn", "plain float32", "plain bfloat16", "optimized"]


def test_the_report_has_a_column_for_each_and_the_optimized_model_stays(run) -> None:
    _, _, outcome = run
    data = outcome.report.to_json()
    assert list(outcome.report.shown_beside) == ["plain float32"]
    assert (data["baseline_name"], data["optimized_name"]) == ("plain bfloat16", "optimized")
    assert (data["model"], data["profile"]) == ("tiny-llama", "balanced")
    assert outcome.opened.model.dtype == torch.bfloat16
    applied = get_optimization_manager().get_model_optimizations(outcome.opened.model)
    assert (
        [receipt["name"] for receipt in data["receipts"]]
        == applied
        == ["tensor_compression", "flash_attention", "kernel_fusion"]
    )
    assert [step["name"] for step in data["plan"]["steps"]] == applied


def test_all_were_timed_in_one_run(run) -> None:
    report = run[2].report
    measured = [*report.shown_beside.values(), report.baseline, report.optimized]
    assert len({one.details["speed"]["run"] for one in measured}) == 1
    assert None not in {one.details["speed"]["run"] for one in measured}


def test_decode_is_compared_with_the_faster_plain_model_and_the_rest_with_the_baseline(run) -> None:
    report = run[2].report
    plain = {"plain float32": report.shown_beside["plain float32"], "plain bfloat16": report.baseline}
    faster = max(plain, key=lambda name: plain[name].decode_tokens_per_s)
    optimized, comparison = report.optimized, report.comparison
    assert comparison.decode_speedup == optimized.decode_tokens_per_s / plain[faster].decode_tokens_per_s
    assert comparison.prefill_ratio == optimized.prefill_tokens_per_s / report.baseline.prefill_tokens_per_s
    assert comparison.resident_bytes_ratio == optimized.resident_bytes / report.baseline.resident_bytes
    assert report.notes[0].startswith(f"the decode ratio is against {faster}")
    low, high = comparison.intervals["decode_speedup"]
    assert low <= comparison.decode_speedup <= high


def test_quality_is_against_the_plain_model_that_was_optimized(run) -> None:
    report = run[2].report
    assert 0 <= report.comparison.kl_nats_per_token < 0.1
    assert report.comparison.perplexity_ratio == report.optimized.perplexity / report.baseline.perplexity


def test_a_float32_model_has_bfloat16_beside_it(llama_folder: Path) -> None:
    side = SideBySide(Asked(str(llama_folder), "lossless", dtype=torch.float32), Heard(), QUICK)
    side.plan()
    report = side.measure().report
    assert list(report.shown_beside) == ["plain bfloat16"]
    assert report.baseline_name == "plain float32"


def test_a_model_without_a_tokenizer_is_measured_without_quality(mute_folder: Path) -> None:
    side = SideBySide(Asked(str(mute_folder)), Heard(), QUICK)
    side.plan()
    report = side.measure().report
    assert report.optimized.perplexity is None
    assert report.comparison.kl_nats_per_token is None
    assert NO_QUALITY in report.notes


def test_what_does_not_fit_into_memory_is_left_out_and_the_report_says_so(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "_free_bytes", lambda device: 0)
    heard = Heard()
    side = SideBySide(Asked(str(llama_folder)), heard, QUICK)
    side.plan()
    report = side.measure().report
    assert heard.stages == ["plain bfloat16", "optimized"]
    assert report.shown_beside == {}
    assert any(note.startswith("plain float32 is not shown beside: it needs") for note in report.notes)
    assert any(note.startswith("speeds were measured one after the other") for note in report.notes)
    assert len(report.optimized.details["speed"]["decode_tokens_per_s"]["samples"]) == QUICK.repeats


def test_a_profile_of_which_nothing_applies_is_told_in_the_plan(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inference_pio.optimizations.attention.flash_attention import FlashAttention
    from inference_pio.optimizations.compute.kernel_fusion import KernelFusion

    for member in (FlashAttention, KernelFusion):
        monkeypatch.setattr(member, "unavailable", classmethod(lambda cls: "not on this machine"))
    with pytest.raises(NothingApplied, match="not on this machine"):
        SideBySide(Asked(str(llama_folder), "lossless"), Heard(), QUICK).plan()
