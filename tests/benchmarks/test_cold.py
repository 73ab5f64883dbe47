"""From a cold disk: files are dropped before each token, in time that counts for nobody; what is wrong is told."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.arms import offload, scoring
from benchmarks.arms.offload import ColdDecoder
from benchmarks.arms.room import Room
from benchmarks.cold import direct_read_rate, forget_all, read_bytes
from benchmarks.score_job import ScoreJob
from benchmarks.suites import SUITES

from benchmarks import real_models, score_job

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not Path("/proc/self/io").is_file(), reason="reads are told by /proc")


def test_files_that_are_forgotten_come_from_the_disk_again(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    file = tmp_path / "inner" / "some"
    file.write_bytes(bytes(16 * 2**20))
    forget_all(tmp_path)
    before = read_bytes()
    file.read_bytes()
    came = read_bytes() - before
    if not came:
        pytest.skip("this file system's reads are not told")
    assert came >= 0.9 * 16 * 2**20
    before = read_bytes()
    file.read_bytes()
    assert read_bytes() - before < 2**20


def test_reads_past_the_cache_have_a_rate_or_a_reason(tmp_path: Path) -> None:
    file = tmp_path / "some"
    file.write_bytes(bytes(12 * 2**20 + 5))
    with contextlib.suppress(OSError):  # a disk that allows none
        assert direct_read_rate(file) > 0
    with pytest.raises(FileNotFoundError):
        direct_read_rate(tmp_path / "none")


def test_dropping_happens_before_each_token_and_its_time_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = real_models.build("qwen3-4b", "cpu", smoke=True)
    prompt, seconds = real_models.prompt(model, 8), [0.0]
    monkeypatch.setattr(offload.time, "perf_counter", lambda: seconds[0])
    dropped: list[Path] = []

    def drop(folder: Path) -> None:
        dropped.append(folder)
        seconds[0] += 100.0

    monkeypatch.setattr(offload, "forget_all", drop)
    forward = model.forward

    def slow(*given: Any, **named: Any) -> Any:
        seconds[0] += 2.0
        return forward(*given, **named)

    model.forward = slow
    decoder = ColdDecoder(model, str(tmp_path), Room(prompt, 12, smoke=True))
    done = decoder.decode(prompt, 4)
    assert dropped == [tmp_path] * 5
    assert done.first_token_s == 2.0
    assert done.decode_s == pytest.approx(3 * 2.0)
    assert decoder.decode(prompt, 2, logits=True).logits is not None


def test_losses_are_those_of_the_plain_model() -> None:
    one = ScoreJob(SUITES["score-qwen3-4b"].smoked(), "pio-layer-major", CPU, smoke=True)
    said = one.set_up()
    answer = one.round()
    folder = Path(one.scorer.folder)
    one.close()
    assert said["right"]
    assert said["check"]["losses"] == 32
    assert answer["values"]["batches"] == pytest.approx(32 / answer["seconds"])
    assert not folder.exists()


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        (lambda right: [9.0] * len(right), "of itself off"),
        (lambda right: [*right[:-1], float("nan")], "no finite number"),
        (lambda right: right[:1], "1 losses came of 32 batches"),
    ],
)
def test_other_losses_are_wrong(
    losses: Callable[[list[float]], list[float]], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: Any, room: Room) -> scoring.Scorer:
        return scoring.Scorer(lambda scorer, batches: losses(scoring.one_by_one(model, batches)), "")

    monkeypatch.setitem(score_job.ARMS, "broken", scoring.ScoreArm("broken", broken))
    said = ScoreJob(SUITES["score-qwen3-4b"].smoked(), "broken", CPU, smoke=True).set_up()
    assert not said["right"]
    assert told in said["reason"]
    json.dumps(said, allow_nan=False)  # as results are written
