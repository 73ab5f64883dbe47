"""`python benchmarks/prefill_profile.py qwen3-4b`: where the forward of a long prompt spends the GPU's time.

torch's profiler listens to one forward: kernels by the operation that launched them and its shapes, in groups, so that
what lies between attention and matrix products can be found.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# started as a file: its folder is on the path, the repository may not be
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "src")) if path not in sys.path]

from benchmarks.step_profile import ON_GPU, SHOWN, arguments, covered, trace_of  # noqa: E402

MARK = "a prompt's forward"
KERNELS = ROOT / "src" / "inference_pio" / "kernels" / "triton"
GROUPS = ("attention", "matmul", "ours", "torch", "other")
"""The last but one: torch's elementwise kernels, reductions and copies."""
ATTENTION = re.compile(r"flash|fmha|sdpa|attention|attn", re.IGNORECASE)
MATMUL = re.compile(r"gemm|gemv|nvjet|cutlass|cublas|xmma|splitk", re.IGNORECASE)
TORCH = re.compile(r"at::native|at_cuda_detail|cub::|memcpy|memset|elementwise", re.IGNORECASE)
MOST_ROWS = 40

Told = dict[str, Any]


@cache
def our_kernels() -> frozenset[str]:
    """The functions of our kernels' files: a Triton kernel bears the name of its function."""
    return frozenset(
        name for path in KERNELS.glob("*.py") for name in re.findall(r"^def (\w+)\(", path.read_text(), re.M)
    )


def group_of(kernel: str) -> str:
    """
    >>> group_of("nvjet_tst_128x256_64x4"), group_of("silu_mul_kernel"), group_of("Memcpy DtoD (Device -> Device)")
    ('matmul', 'ours', 'torch')
    """
    if ATTENTION.search(kernel):
        return "attention"
    if kernel in our_kernels():
        return "ours"
    if MATMUL.search(kernel):
        return "matmul"
    return "torch" if TORCH.search(kernel) else "other"


def counted(events: Iterable[Mapping[str, Any]], layers: int) -> Told:
    """What a trace of the profiler (its `traceEvents`) holds within the mark."""
    events = [event for event in events if event.get("ph") == "X"]
    marks = [event for event in events if event.get("name") == MARK and event.get("cat") == "user_annotation"]
    if len(marks) != 1:
        raise ValueError(f"the trace holds {len(marks)} marks of a forward, and not one")
    begin, end = marks[0]["ts"], marks[0]["ts"] + marks[0]["dur"]
    inside = [event for event in events if begin <= event["ts"] < end]
    asked = {event["args"]["External id"]: event for event in inside
             if event.get("cat") == "cpu_op" and "External id" in event.get("args", {})}  # fmt: skip
    on_gpu = [event for event in inside if event.get("cat") in ON_GPU]
    rows = _rows(on_gpu, asked, layers)
    groups = {
        group: {"ms": sum(row["ms"] for row in mine), "per_layer": sum(row["count"] for row in mine) / max(layers, 1)}
        for group in GROUPS if (mine := [row for row in rows if row["group"] == group])
    }  # fmt: skip
    busy = covered([(event["ts"], min(event["ts"] + event["dur"], end)) for event in on_gpu])
    return {
        "layers": layers, "ms": (end - begin) / 1e3, "gpu_idle_share": 1 - busy / (end - begin), "groups": groups,
        "rows": rows[:MOST_ROWS],
    }  # fmt: skip


def _rows(on_gpu: list[Mapping[str, Any]], asked: Mapping[int, Mapping[str, Any]], layers: int) -> list[Told]:
    """A row for each kernel, the operation that launched it and its shapes; the costliest first."""
    taken: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for event in on_gpu:
        operation = asked.get(event.get("args", {}).get("External id"), {})
        shapes = [shape for shape in operation.get("args", {}).get("Input Dims", []) if shape]
        taken[event["name"], operation.get("name", ""), str(shapes) if shapes else ""].append(event["dur"])
    rows = [
        {"name": name[:SHOWN], "operation": operation, "shapes": shapes, "group": group_of(name), "count": len(each),
         "us": sum(each) / len(each), "ms": sum(each) / 1e3, "ms_per_layer": sum(each) / 1e3 / max(layers, 1)}
        for (name, operation, shapes), each in taken.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -row["ms"])


def table(found: Mapping[str, Told]) -> str:
    """Each system's groups, then its kernels, the costliest first."""
    lines = []
    for arm, told in found.items():
        lines.append(
            f"{arm}: {told['ms']:.1f} ms while listened to, {told['alone_ms']:.1f} alone, GPU idle "
            f"{told['gpu_idle_share']:.1%}, {told['layers']} layers"
        )
        for group, sums in told["groups"].items():
            share = sums["ms"] / max(told["layers"], 1)
            lines.append(
                f"  {group:<10}{sums['ms']:9.2f} ms, {share:7.3f} ms and {sums['per_layer']:.1f} kernels a layer"
            )
        lines += [
            f"    {row['ms']:8.2f} ms {row['count']:5} x {row['us']:9.1f} us  {row['group']:<10}{row['operation']} "
            f"{row['shapes']} {row['name']}"
            for row in told["rows"]
        ]
    return "\n".join(lines)


def main(words: list[str] | None = None) -> int:
    options = arguments(__doc__, ["plain", "pio-elementwise", "pio-merged"], 32768).parse_args(words)
    found = {}
    for arm in options.arms:
        found[arm] = _measured(arm, options)
        print(table({arm: found[arm]}), flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _measured(arm: str, options: Any) -> Told:
    import torch
    from torch.profiler import record_function

    from benchmarks import real_models
    from benchmarks.arms.prefill import ARMS
    from benchmarks.arms.room import Room
    from benchmarks.ceilings import seconds_of

    device = torch.device("cpu" if options.smoke else "cuda")
    model: Any = real_models.build(options.model, device, smoke=options.smoke, layers=options.layers)
    prompt = real_models.prompt(model, options.prompt)
    run = ARMS[arm].make(model, Room(prompt, options.prompt, options.smoke))

    def marked() -> None:
        with record_function(MARK):
            run(prompt, 1)
            if prompt.is_cuda:
                torch.cuda.synchronize()

    run(prompt, 1)
    alone_ms = 1e3 * seconds_of(lambda: run(prompt, 1), device)
    trace = trace_of(marked, cuda=prompt.is_cuda, shapes=True)
    return counted(trace, model.config.get_text_config().num_hidden_layers) | {"alone_ms": alone_ms}


if __name__ == "__main__":
    sys.exit(main())
