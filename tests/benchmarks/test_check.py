"""A gain that is lost fails `make bench-check` by name; one bad moment does not."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import check
from tests import tiny


def small_arms() -> dict[str, Any]:
    return check.make_arms(tiny.build("qwen3").to(torch.bfloat16))


def test_a_model_that_became_slow_fails_and_is_named() -> None:
    arms, prompt = small_arms(), torch.randint(1, 100, (1, 16))
    before = check.measure(arms, prompt, rounds=1, new_tokens=4)
    arms["balanced"].register_forward_pre_hook(lambda *_: time.sleep(0.03))
    lines = check.hold(
        lambda: check.measure(arms, prompt, rounds=1, new_tokens=4), {"ratios": {"here": before}}, "here"
    )
    assert any(line.startswith("decode, balanced over plain fell from") for line in lines)
    assert not any("weight bytes" in line for line in lines)


def test_weights_that_became_larger_fail_on_every_kind_of_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    recorded = {"ratios": {"elsewhere": {"weight bytes, plain over balanced": 2.0, "decode, balanced over plain": 9.0}}}
    now = {"weight bytes, plain over balanced": 1.0, "decode, balanced over plain": 1.0}
    lines = check.hold(lambda: now, recorded, "here")
    assert [line.split(" fell")[0] for line in lines] == ["weight bytes, plain over balanced"]
    assert "no speeds are recorded for here" in capsys.readouterr().out


def test_one_bad_moment_is_measured_again() -> None:
    moments = iter([{"decode": 0.5}, {"decode": 1.0}])
    assert check.hold(lambda: next(moments), {"ratios": {"here": {"decode": 1.0}}}, "here") == []


def test_a_ratio_that_is_measured_no_more_fails() -> None:
    lines = check.hold(lambda: {"a": 1.0}, {"ratios": {"here": {"a": 1.0, "b": 1.0}}}, "here")
    assert lines == ["b was recorded and is measured no more"]


def test_a_record_keeps_those_of_other_cpus(tmp_path: Path) -> None:
    path = tmp_path / "check.json"
    check.record(path, "one", {"a": 1.0})
    check.record(path, "two", {"a": 2.0})
    assert json.loads(path.read_text())["ratios"] == {"one": {"a": 1.0}, "two": {"a": 2.0}}


def test_the_recorded_ratios_are_those_that_are_measured() -> None:
    recorded = json.loads(check.RECORD.read_text())["ratios"]
    names = set(check.measure(small_arms(), torch.randint(1, 100, (1, 16)), rounds=1, new_tokens=3))
    assert recorded
    assert all(set(ratios) == names for ratios in recorded.values())
