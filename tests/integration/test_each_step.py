from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from inference_pio.errors import MeasureError
from inference_pio.integration import each_step
from inference_pio.integration.asked import Asked
from inference_pio.integration.each_step import IN_STEPS, PLAIN
from inference_pio.integration.side_by_side import Outcome, SideBySide
from inference_pio.integration.targets import Changes
from inference_pio.manager import get_optimization_manager
from tests.model_folder import QUICK

STEPS = ["tensor_compression", "flash_attention", "kernel_fusion"]


def quiet(stage: str) -> Callable[[str, float], None]:
    return lambda phase, fraction: None


def measured(folder: Path, changes: Changes | None = None) -> Outcome:
    run = SideBySide(Asked(str(folder), "balanced", changes or Changes()), quiet, QUICK, each_step=True)
    run.plan()
    return run.measure()


def test_the_plain_model_and_each_step_are_timed_in_one_run(llama_folder: Path) -> None:
    outcome = measured(llama_folder)
    steps = outcome.report.steps
    assert [step.name for step in steps] == [PLAIN, *STEPS]
    assert len({step.measured.details["speed"]["run"] for step in steps}) == 1
    assert steps[0].measured.weight_bytes == outcome.report.baseline.weight_bytes
    assert len({step.measured.weight_bytes for step in steps[1:]}) == 1
    assert steps[1].measured.weight_bytes < steps[0].measured.weight_bytes
    assert steps[1].comparison.kl_nats_per_token > 0
    assert steps[3].comparison.kl_nats_per_token == outcome.report.comparison.kl_nats_per_token
    assert IN_STEPS in outcome.report.notes
    assert get_optimization_manager().get_model_optimizations(outcome.opened.model) == STEPS


def test_one_step_is_the_whole(mute_folder: Path) -> None:
    report = measured(mute_folder, Changes(disable=("tensor_compression", "kernel_fusion"))).report
    assert [step.name for step in report.steps] == [PLAIN, "flash_attention"]
    assert report.steps[1].comparison.kl_nats_per_token is None


@pytest.mark.slow
def test_without_a_tokenizer_steps_are_measured_without_quality(mute_folder: Path) -> None:
    assert [step.measured.perplexity for step in measured(mute_folder).report.steps] == [None] * 4


def test_after_an_error_the_model_has_all_its_steps_again(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: object, **options: object) -> None:
        raise MeasureError("the clock stood still")

    asked = Asked(str(llama_folder))
    opened = asked.open()
    asked.apply(opened)
    run = each_step.EachStep(opened.model, opened.tokenizer, QUICK, quiet)
    run._bring_to(1)
    monkeypatch.setattr(each_step, "measure_speed_interleaved", fails)
    with pytest.raises(MeasureError):
        run.measure((None, None), None, None)
    assert get_optimization_manager().get_model_optimizations(opened.model) == STEPS
