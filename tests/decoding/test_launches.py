"""Launches are found once for each product, kept on the disk, and never in the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.decoding import launches as module
from inference_pio.decoding.engine import Engine
from inference_pio.decoding.fused import FusedOperations
from inference_pio.decoding.launches import Launches
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.exponent12 import Packed, pack, unpack
from inference_pio.kernels.triton.gemv_candidates import GemvProblem
from inference_pio.kernels.triton.gemv_launch import GemvLaunch
from inference_pio.kernels.triton.gemv_tuning import GemvWeights, Tuning

CPU = torch.device("cpu")
X, WEIGHT = torch.zeros(1, 64), torch.zeros(6, 64)
FOUND = GemvLaunch(2, 256, 1)


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFERENCE_PIO_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "machine_of", lambda device: {"device": "of this test"})
    return tmp_path


def heard(launches: Launches, *weights: torch.Tensor, **beside: Any) -> GemvLaunch | None:
    return launches.launch_for(X, weights or (WEIGHT,), None, **beside)


def tuner(calls: list[tuple[str, int]]) -> Callable[[GemvProblem, Sequence[GemvWeights], float], Tuning]:
    def tuned(problem: GemvProblem, weights: Sequence[GemvWeights], time_limit_s: float) -> Tuning:
        calls.append((problem.key(), len(weights)))
        return Tuning(FOUND, {FOUND: 1.0})

    return tuned


def test_products_that_were_heard_get_launches_and_alike_ones_share_them() -> None:
    launches, calls = Launches(), list[tuple[str, int]]()
    assert heard(launches) is None
    launches.listen()
    heard(launches, WEIGHT)
    heard(launches, WEIGHT.clone())
    heard(launches, WEIGHT, WEIGHT, gated=True)
    assert launches.tune(CPU, tuner(calls)) == 2
    assert calls == [("1 x 64 x 6 float32", 2), ("1 x 64 x 6+6 float32 gated", 1)]
    assert heard(launches) == heard(launches, WEIGHT, WEIGHT, gated=True) == FOUND
    assert heard(launches, normed=True) is None
    launches.listen()
    heard(launches)
    assert launches.tune(CPU, tuner(calls)) == 0


def test_another_process_finds_them_in_the_file(machine: Path) -> None:
    first, calls = Launches(), list[tuple[str, int]]()
    first.listen()
    heard(first)
    first.tune(CPU, tuner(calls))
    assert [path.parent.name for path in machine.rglob("gemv-*.json")] == ["tuning"]
    again = Launches()
    again.listen()
    heard(again)
    assert again.tune(CPU, tuner(calls)) == 0
    assert len(calls) == 1
    assert heard(again) == FOUND


def test_what_cannot_be_tuned_or_kept_is_noted_and_goes_by_rule(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> Tuning:
        raise InvalidSetting("no launch gives the right result")

    launches = Launches()
    launches.listen()
    heard(launches)
    assert launches.tune(CPU, broken) == 0
    assert launches.notes == ["no launch gives the right result"]
    assert heard(launches) is None
    (machine / "file").write_text("")
    monkeypatch.setenv("INFERENCE_PIO_CACHE", str(machine / "file"))
    launches.listen()
    heard(launches)
    assert launches.tune(CPU, broken) == 0
    assert launches.notes[1].startswith("launches are not tuned: cannot write the cache folder")


def test_a_damaged_file_is_told_and_written_anew(machine: Path) -> None:
    first = Launches()
    first.listen()
    heard(first)
    first.tune(CPU, tuner([]))
    (file,) = machine.rglob("gemv-*.json")
    file.write_text("{")
    again = FusedOperations()
    again.launches.listen()
    heard(again.launches)
    assert again.launches.tune(CPU, tuner([])) == 1
    assert "is damaged" in Engine(again).notes[0]


def packed(rows: int = 6, inputs: int = 64) -> list[Packed]:
    return [pack(torch.randn(rows, inputs, generator=torch.Generator().manual_seed(0)).bfloat16())]


@pytest.mark.parametrize("rows", [1, 3])
def test_packed_weights_take_the_columns_of_the_plain_ones_launch(rows: int) -> None:
    launches, x, seen = Launches(), torch.zeros(rows, 64).bfloat16(), dict[str, Any]()
    by_rule, columns = launches.exact_launch_for(x, packed())
    assert not by_rule.stages or rows > 2
    assert columns % by_rule.columns == 0
    narrow, rows_of_two = GemvLaunch(1, 1024, 2), GemvLaunch(2, 512, 1)

    def tuned(problem: GemvProblem, weights: Sequence[GemvWeights], time_limit_s: float) -> Tuning:
        seen[problem.key()] = weights[0][0][0]
        found = rows_of_two if problem.exact_columns else narrow
        return Tuning(found, {found: 1.0})

    launches.listen()
    launches.exact_launch_for(x, packed())
    asked = [f"{rows} x 64 x 6 bfloat16", f"{rows} x 64 x 6 bfloat16 exponent12 by 1024"][: 2 if rows == 1 else 1]
    assert launches.tune(CPU, tuned) == len(asked)
    assert list(seen) == asked
    assert torch.equal(seen[asked[0]], unpack(packed()[0])), "the plain product is tuned with plain weights"
    assert launches.exact_launch_for(x, packed()) == (rows_of_two if rows == 1 else narrow, 1024)
    again = Launches()
    again.listen()
    again.launch_for(x, [torch.zeros(6, 64).bfloat16()], None)
    assert again.tune(CPU, tuned) == 0, "plain weights go by the launch that packed ones left in the file"
    assert again.launch_for(x, [torch.zeros(6, 64).bfloat16()], None) == narrow


def test_packed_weights_whose_plain_launch_is_not_found_go_by_rule_as_plain_ones_do() -> None:
    def broken(problem: GemvProblem, weights: Sequence[GemvWeights], time_limit_s: float) -> Tuning:
        if problem.exact_columns:
            return Tuning(FOUND, {FOUND: 1.0})
        raise raised

    x = torch.zeros(1, 64).bfloat16()
    for raised in (InvalidSetting("no launch gives the right result"), torch.OutOfMemoryError("no room to unpack")):
        launches = Launches()
        by_rule = launches.exact_launch_for(x, packed())
        launches.listen()
        launches.exact_launch_for(x, packed())
        launches.tune(CPU, broken)
        assert launches.exact_launch_for(x, packed())[1] == by_rule[1]
        assert str(raised) in launches.notes[0]


@pytest.mark.gpu
@pytest.mark.skipif(not has_triton(), reason="triton is not installed")
def test_it_tunes_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    device = torch.device("cuda")
    launches = Launches()
    launches.listen()
    x, weights = torch.randn(1, 512, device=device), [torch.randn(1024, 512, device=device) for _ in range(4)]
    for weight in weights:
        launches.launch_for(x, (weight,), None)
    assert launches.tune(device) in (0, 1)
    assert launches.launch_for(x, weights[:1], None) is not None
    assert launches.notes == []
