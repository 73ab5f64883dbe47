"""What a profiler's trace says of a token: counted on a trace made by hand, and a real one of a CPU is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.step_profile import MARK, counted, main, table


def event(cat: str, name: str, begin: float, taken: float = 1.0) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": begin, "dur": taken}


def trace() -> list[dict[str, Any]]:
    """Two tokens after the first: 20 us each, of which the GPU computes 15; what lies outside must not count."""
    found = [event("kernel", "prefill", 50, 40), event("cuda_runtime", "cudaStreamSynchronize", 90)]
    found += [event("user_annotation", MARK, 100 + 20 * token, 0.1) for token in range(3)]
    for token in range(2):
        begin = 100 + 20 * token
        found += [
            event("cuda_runtime", "cudaGraphLaunch", begin + 1),
            event("cuda_runtime", "cudaEventSynchronize", begin + 2),
            event("kernel", "gemv", begin + 1, 6), event("kernel", "gemv", begin + 7, 4),
            event("kernel", "join", begin + 8, 5),  # two microseconds beside the one before: they overlap
            event("gpu_memset", "Memset (Device)", begin + 13, 1),
            event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", begin + 14, 2),
            event("cpu_op", "aten::add", begin + 3), {"ph": "i", "name": "an instant", "ts": begin},
        ]  # fmt: skip
    return [*found, event("kernel", "behind", 141, 9), event("cuda_runtime", "cudaDeviceSynchronize", 142)]


def test_a_trace_is_counted_between_its_tokens() -> None:
    told = counted(trace(), layers=3)
    assert told["tokens"] == 2
    assert told["ms_per_token"] == pytest.approx(0.020)
    assert told["kernels_per_token"] == 3
    assert told["kernels_per_layer"] == 1
    assert told["graph_launches_per_token"] == 1
    assert told["host_waits_per_token"] == 1
    assert told["host_waits"] == {"cudaEventSynchronize": 2}
    assert told["copies"] == {"Memcpy DtoH (Device -> Pinned)": 2}
    assert told["gpu_idle_share"] == pytest.approx(1 - 15 / 20)
    assert [(row["name"], row["per_token"], row["us"]) for row in told["kernels"]] == [("gemv", 2, 5), ("join", 1, 5)]
    said = table({"ours": told})
    assert "GPU idle 25.0%" in said
    assert "10.0 us/token    2.00 x     5.00 us  gemv" in said


def test_a_trace_without_tokens_is_told() -> None:
    with pytest.raises(ValueError, match="holds 1 marks"):
        counted(trace()[:3], layers=1)


@pytest.mark.filterwarnings("ignore")
def test_a_real_trace_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "profile.json"
    assert main(["qwen3-4b", "--smoke", "--tokens", "5", "--prompt", "24", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert {arm: told["tokens"] for arm, told in found.items()} == {"plain": 4, "pio-graph": 4}
    assert all(told["kernels_per_token"] == 0 for told in found.values())  # no GPU computed here
    assert "pio-graph: " in capsys.readouterr().out
