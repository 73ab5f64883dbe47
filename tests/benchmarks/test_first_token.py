"""Until the first token: phases are timed, what Python spent is told by function, a process that fails is told."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from benchmarks.first_token import MOST_FUNCTIONS, Phases, _timed, main, measured, table

from inference_pio.measure import describe_machine


def test_a_tiny_model_is_applied_and_called_twice() -> None:
    told = measured("qwen3-4b", tiny=True, listening=True)
    assert list(told["seconds"]) == ["import", "build", "apply", "first call", "second call"]
    assert all(seconds > 0 for seconds in told["seconds"].values())
    assert told["engine"]["calls"] == 2
    assert told["engine"]["left_to_the_library"] == {}
    assert 0 < told["tuning_s"] < told["seconds"]["first call"]
    functions = told["functions"]["apply"]
    assert len(functions["ours"]) == MOST_FUNCTIONS
    assert functions["ours"][0]["cumulative_s"] >= functions["ours"][-1]["cumulative_s"]
    assert any("take_step" in row["function"] for row in functions["ours"])
    assert "apply, with all below:" in table({"profiled": told | {"process_s": 1.0}})


def test_phases_wait_and_tell_whose_functions_took_the_time() -> None:
    waited: list[int] = []
    phases = Phases(lambda: waited.append(1), listening=True)
    phases.take("sleep", lambda: time.sleep(0.02))
    phases.take("ours", lambda: describe_machine("cpu"))
    assert len(waited) == 4
    assert phases.seconds["sleep"] >= 0.02
    assert phases.functions["sleep"]["ours"] == []
    assert "sleep" in phases.functions["sleep"]["own"][0]["function"]
    assert any("describe_machine" in row["function"] for row in phases.functions["ours"]["ours"])


def test_a_timed_method_gives_what_it_gave() -> None:
    class Owner:
        def add(self, one: int, *, other: int) -> int:
            return one + other

    owner = Owner()
    taken = _timed(owner, "add")
    assert owner.add(1, other=2) == 3
    assert len(taken) == 1


def test_an_unknown_run_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["qwen3-4b", "--tiny", "--runs", "hot"])
    assert "no run hot: there are cold, warm, profiled" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_one_after_another_tell_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    assert main(["qwen3-4b", "--tiny", "--runs", "cold,warm", "--json", str(out)]) == 0
    found: dict[str, Any] = json.loads(out.read_text())["runs"]
    assert list(found) == ["cold", "warm"]
    assert all(told["process_s"] > told["seconds"]["apply"] for told in found.values())
    assert main(["no-such-model", "--tiny", "--runs", "cold"]) == 1
    assert "cold      FAILED: its process ended with code 1" in capsys.readouterr().out
