from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from inference_pio.errors import InvalidSetting, NothingApplied
from inference_pio.integration.asked import Asked
from inference_pio.integration.many_profiles import IN_ORDER, ManyProfiles
from inference_pio.integration.measured import NO_QUALITY
from inference_pio.measure.report_profiles import ProfilesReport
from inference_pio.optimizations.attention.flash_attention import FlashAttention
from inference_pio.optimizations.compute.kernel_fusion import KernelFusion
from inference_pio.sources import OpenedModel
from inference_pio.undo.fingerprint import fingerprint
from tests.model_folder import QUICK

NAMES = ("lossless", "balanced", "performance")


def quiet(stage: str) -> Callable[[str, float], None]:
    return lambda phase, fraction: None


def prepared(folder: Path, names: tuple[str, ...] = NAMES) -> tuple[ManyProfiles, OpenedModel]:
    asked = [Asked(str(folder), name, hardware="ampere_ada") for name in names]  # two of them are one plan there
    run, opened = ManyProfiles(asked, quiet, QUICK), asked[0].open()
    run.plan(opened)
    return run, opened


@pytest.fixture(scope="module")
def found(llama_folder: Path) -> ProfilesReport:
    run, opened = prepared(llama_folder)
    before = fingerprint(opened.model)
    report = run.measure()
    assert before.differences(fingerprint(opened.model)) == []
    return report


def test_each_profile_is_measured_against_the_one_baseline(found: ProfilesReport) -> None:
    assert [one.profile for one in found.profiles] == list(NAMES)
    for one in found.profiles:
        assert one.optimized is not None
        assert one.comparison is not None
        ratio = one.optimized.decode_tokens_per_s / found.baseline.decode_tokens_per_s
        assert one.comparison.decode_speedup == ratio
        assert one.comparison.kl_nats_per_token is not None
    assert found.baseline_name == "plain bfloat16"


def test_each_profile_has_its_own_steps_and_no_others(found: ProfilesReport) -> None:
    steps = [[receipt["name"] for receipt in one.receipts] for one in found.profiles]
    assert steps == [
        ["flash_attention", "kernel_fusion"],
        *[["tensor_compression", "flash_attention", "kernel_fusion"]] * 2,
    ]
    lossless, balanced, _ = found.profiles
    assert lossless.optimized.weight_bytes == found.baseline.weight_bytes > balanced.optimized.weight_bytes  # type: ignore[union-attr]


def test_the_notes_tell_the_order_and_which_profiles_are_one_plan(found: ProfilesReport) -> None:
    assert found.notes[0] == IN_ORDER
    assert found.notes[1] == "performance plans the same steps as balanced here: they differ by chance alone"


def _unavailable(patch: pytest.MonkeyPatch) -> None:
    """No member of lossless can be had."""
    for one in (FlashAttention, KernelFusion):
        patch.setattr(one, "unavailable", classmethod(lambda cls: "needs a moon"))


def test_a_profile_of_which_nothing_applies_is_told_and_the_others_are_measured(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _unavailable(monkeypatch)
    run, _ = prepared(llama_folder, ("lossless", "balanced"))
    report = run.measure()
    assert "needs a moon" in str(report.profiles[0].failed)
    assert report.profiles[1].optimized is not None


def test_where_none_applies_the_plan_says_so(mute_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _unavailable(monkeypatch)
    with pytest.raises(NothingApplied, match="needs a moon"):
        prepared(mute_folder, ("lossless",))


def test_without_a_tokenizer_quality_is_left_out(mute_folder: Path) -> None:
    run, _ = prepared(mute_folder, ("balanced",))
    report = run.measure()
    assert report.profiles[0].comparison.kl_nats_per_token is None  # type: ignore[union-attr]
    assert NO_QUALITY in report.notes


def test_after_an_error_the_model_is_plain_again(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, opened = prepared(llama_folder, ("balanced",))
    before = fingerprint(opened.model)

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("inference_pio.integration.many_profiles.receipts_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.measure()
    assert before.differences(fingerprint(opened.model)) == []


def test_comparing_nothing_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="no profile"):
        ManyProfiles([], quiet)
