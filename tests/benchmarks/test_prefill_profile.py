"""What a trace says of a prompt's forward: counted on one made by hand, and a real one of a CPU is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.prefill_profile import MARK, counted, group_of, main, our_kernels, table
from benchmarks.step_profile import trace_of
from torch.profiler import record_function

from benchmarks import prefill_profile


def event(cat: str, name: str, begin: float, taken: float, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": begin, "dur": taken, "args": args}


ADD = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>"


def trace() -> list[dict[str, Any]]:
    """A forward of two layers that takes 100 us, of which the GPU computes 80; what lies outside must not count."""
    return [
        event("kernel", ADD, 40, 9),
        event("user_annotation", MARK, 50, 100), event("gpu_user_annotation", MARK, 51, 90),
        event("cpu_op", "aten::add", 52, 1, **{"External id": 1, "Input Dims": [[1, 8, 64], [1, 8, 64], []]}),
        event("cpu_op", "aten::add", 53, 1, **{"External id": 2, "Input Dims": [[1, 8, 64], [1, 8, 64], []]}),
        event("kernel", ADD, 60, 10, **{"External id": 1}), event("kernel", ADD, 70, 10, **{"External id": 2}),
        event("kernel", "cudnn_generated_fort_native_sdpa_sm90_flash_fprop", 80, 20),
        event("kernel", "nvjet_tst_128x256_64x4", 100, 30), event("kernel", "silu_mul_kernel", 130, 10),
        event("kernel", ADD, 150, 9), {"ph": "i", "name": "an instant", "ts": 60},
    ]  # fmt: skip


def test_a_forward_is_counted_by_group_and_by_operation() -> None:
    told = counted(trace(), layers=2)
    assert told["ms"] == pytest.approx(0.1)
    assert told["gpu_idle_share"] == pytest.approx(0.2)
    assert {name: group["ms"] for name, group in told["groups"].items()} == {
        "attention": pytest.approx(0.02), "matmul": pytest.approx(0.03), "ours": pytest.approx(0.01),
        "torch": pytest.approx(0.02),
    }  # fmt: skip
    assert told["groups"]["torch"]["per_layer"] == 1
    (added,) = (row for row in told["rows"] if row["operation"] == "aten::add")
    assert (added["count"], added["us"], added["shapes"]) == (2, 10, "[[1, 8, 64], [1, 8, 64]]")
    assert [row["ms"] for row in told["rows"]] == sorted((row["ms"] for row in told["rows"]), reverse=True)
    said = table({"ours": told | {"alone_ms": 0.09}})
    assert "matmul         0.03 ms,   0.015 ms and 0.5 kernels a layer" in said


def test_kernels_belong_to_groups_by_their_names() -> None:
    assert our_kernels() > {"silu_mul_kernel", "norm_rotate_kernel", "rms_norm_kernel"}
    for name, group in {
        "flash_kernel": "attention", "pytorch_flash::flash_fwd_kernel": "attention",
        "sm90_xmma_gemm_bf16bf16_bf16f32": "matmul", "void cutlass::Kernel2<...>": "matmul",
        "void at::native::(anonymous namespace)::CatArrayBatchedCopy<...>": "torch", "somebody_elses": "other",
    }.items():  # fmt: skip
        assert group_of(name) == group, name


def test_a_trace_without_a_forward_is_told() -> None:
    with pytest.raises(ValueError, match="holds 0 marks"):
        counted(trace()[:1], layers=1)


def test_operations_of_a_real_trace_have_their_shapes() -> None:
    """On a CPU no kernel refers to them, but the words by which kernels would are there."""

    def deed() -> None:
        with record_function(MARK):
            torch.ones(3, 5) + 1

    found = trace_of(deed, cuda=False, shapes=True)
    (added,) = (one for one in found if one.get("cat") == "cpu_op" and one["name"] == "aten::add")
    assert added["args"]["Input Dims"][0] == [3, 5]
    kernel = event("kernel", ADD, added["ts"], 1.0, **{"External id": added["args"]["External id"]})
    (row,) = counted([*found, kernel], layers=1)["rows"]
    assert (row["operation"], row["shapes"]) == ("aten::add", "[[3, 5]]")


@pytest.mark.filterwarnings("ignore")
def test_every_system_is_listened_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "profile.json"
    assert main(["qwen3-4b", "--smoke", "--prompt", "24", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert list(found) == ["plain", "pio-elementwise", "pio-merged"]
    assert all(told["ms"] > 0 and told["alone_ms"] > 0 and told["layers"] == 2 for told in found.values())
    assert all(told["rows"] == [] and told["gpu_idle_share"] == 1 for told in found.values())  # no GPU computed here
    assert "pio-merged: " in capsys.readouterr().out
    assert prefill_profile.GROUPS[-1] == "other"
