from __future__ import annotations

import json

from rich.console import Console

from inference_pio.measure.comparison import compare_measurements
from inference_pio.measure.machine import describe_machine
from inference_pio.measure.report_profiles import ProfilesReport, Tried
from tests.measure.test_comparison import QUALITY, timed


def report(quality: bool = True) -> ProfilesReport:
    plain, fast, slow = timed((10.0, 20.0, 30.0)), timed((30.0, 40.0, 50.0)), timed((5.0, 10.0, 15.0))
    compared = [compare_measurements(plain, one, QUALITY if quality else None) for one in (fast, slow)]
    tried = [
        Tried("balanced", {"steps": []}, [{"name": "x"}], fast, compared[0]),
        Tried("odd", None, (), slow, compared[1]),
    ]
    return ProfilesReport(
        "tiny",
        plain,
        [*tried, Tried("lossless", failed="nothing [here]")],
        "plain float32",
        describe_machine(),
        ["a note"],
    )


def printed(shown: ProfilesReport) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(shown.to_table())
    return captured.get()


def test_the_json_is_strict_and_holds_every_profile() -> None:
    data = json.loads(json.dumps(report().to_json(), allow_nan=False))
    assert list(data) == ["model", "baseline_name", "baseline", "profiles", "machine", "notes"]
    assert [one["profile"] for one in data["profiles"]] == ["balanced", "odd", "lossless"]
    assert data["profiles"][0]["comparison"]["decode_speedup"] == 2.0
    assert data["profiles"][2]["failed"] == "nothing [here]"
    assert data["profiles"][2]["optimized"] is None


def test_the_table_has_a_column_a_profile_and_losses_beside_gains() -> None:
    text = printed(report())
    assert "100% faster" in text
    assert "50% slower" in text
    assert "KL from the original" in text
    assert "lossless: not measured: nothing [here]" in text
    assert "a note" in text


def test_without_quality_its_rows_are_left_out() -> None:
    assert "KL from" not in printed(report(quality=False))


def test_a_report_of_failures_alone_still_shows_the_plain_model() -> None:
    only = ProfilesReport("tiny", timed((10.0, 20.0)), [Tried("x", failed="no")])
    assert "x: not measured: no" in printed(only)
