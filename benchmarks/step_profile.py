"""`python benchmarks/step_profile.py qwen3-4b`: where a decoded token's time goes, through the user's own `generate`.

torch's profiler listens between the first token and the last: kernels a token and a layer, waits of the host a token,
and the share of the time in which the GPU computes nothing. Listening costs time itself: shares, not speeds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# started as a file: its folder is on the path, the repository may not be
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "src")) if path not in sys.path]

MARK = "a token reached the user"
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize", "cudaMemcpy")
"""Calls of the host that return when the GPU has come so far; a copy to pinned memory alone is none."""
MOST_KERNELS = 25
SHOWN = 100
"""Characters of a kernel's name: templates have hundreds."""

Told = dict[str, Any]


def counted(events: Iterable[Mapping[str, Any]], layers: int, rows: int = 1) -> Told:
    """What a trace of the profiler (its `traceEvents`) holds between the first mark and the last one."""
    events = [event for event in events if event.get("ph") == "X"]
    marks = sorted(event["ts"] for event in events if event.get("name") == MARK)
    if len(marks) < 2:
        raise ValueError(f"the trace holds {len(marks)} marks of tokens: it takes two to tell what lies between")
    begin, end, tokens = marks[0], marks[-1], len(marks) - 1
    inside = [event for event in events if begin <= event["ts"] < end]
    on_gpu = [event for event in inside if event.get("cat") in ON_GPU]
    kernels = [event for event in on_gpu if event["cat"] == "kernel"]
    calls = Counter(event["name"] for event in inside if event.get("cat") in ("cuda_runtime", "cuda_driver"))
    waits = {name: calls[name] for name in WAITS if calls[name]}
    copies = Counter(event["name"] for event in on_gpu if event["cat"] == "gpu_memcpy")
    busy = covered([(event["ts"], min(event["ts"] + event["dur"], end)) for event in on_gpu])
    return {
        "tokens": tokens, "rows": rows, "layers": layers, "ms_per_token": (end - begin) / tokens / 1e3,
        "kernels_per_token": len(kernels) / tokens, "kernels_per_layer": len(kernels) / tokens / max(layers, 1),
        "graph_launches_per_token": calls["cudaGraphLaunch"] / tokens,
        "host_waits_per_token": sum(waits.values()) / tokens, "host_waits": waits, "copies": dict(copies),
        "gpu_idle_share": 1 - busy / (end - begin), "kernels": _by_name(kernels, tokens),
    }  # fmt: skip


def covered(spans: list[tuple[float, float]]) -> float:
    """How much of the time at least one of these spans covers.

    >>> covered([(0, 2), (1, 3), (5, 6)])
    4
    """
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _by_name(kernels: list[Mapping[str, Any]], tokens: int) -> list[Told]:
    taken: dict[str, list[float]] = defaultdict(list)
    for kernel in kernels:
        taken[kernel["name"]].append(kernel["dur"])
    rows = [
        {"name": name[:SHOWN], "per_token": len(each) / tokens, "us": sum(each) / len(each),
         "us_per_token": sum(each) / tokens}
        for name, each in taken.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -row["us_per_token"])[:MOST_KERNELS]


def table(found: Mapping[str, Told]) -> str:
    """Each system in a few lines, then its kernels, the costliest first."""
    lines = []
    for arm, told in found.items():
        lines += [
            f"{arm}: {told['ms_per_token']:.2f} ms/token while listened to, GPU idle {told['gpu_idle_share']:.1%}",
            f"  {told['kernels_per_token']:.1f} kernels a token, {told['kernels_per_layer']:.2f} a layer; "
            f"{told['graph_launches_per_token']:.2f} graph launches, {told['host_waits_per_token']:.2f} waits of the "
            f"host a token {told['host_waits']}; copies {told['copies']}",
        ]
        lines += [
            f"    {row['us_per_token']:9.1f} us/token {row['per_token']:7.2f} x {row['us']:8.2f} us  {row['name']}"
            for row in told["kernels"]
        ]
    return "\n".join(lines)


class Marking:
    """A streamer that leaves a mark in the trace for each token that reaches the user."""

    def __init__(self) -> None:
        self.prompt_seen = False

    def put(self, tokens: Any) -> None:
        from torch.profiler import record_function

        if self.prompt_seen:
            with record_function(MARK):
                pass
        self.prompt_seen = True

    def end(self) -> None:
        """Nothing is left to be marked."""


def profiled(model: Any, prompt: Any, tokens: int) -> list[Mapping[str, Any]]:
    """The trace of one call of `generate`."""
    import torch

    how = {"max_new_tokens": tokens, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    return trace_of(lambda: model.generate(input_ids=prompt, streamer=Marking(), **how), cuda=prompt.is_cuda)


def trace_of(deed: Callable[[], Any], *, cuda: bool, shapes: bool = False) -> list[Mapping[str, Any]]:
    """The events that the profiler hears while a deed is done."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        with profile(activities=activities, record_shapes=shapes) as listening:
            deed()
            if cuda:
                torch.cuda.synchronize()
        listening.export_chrome_trace(str(path))
        return json.loads(path.read_text())["traceEvents"]  # type: ignore[no-any-return]


def arguments(description: str | None, arms: list[str], prompt: int) -> argparse.ArgumentParser:
    """What the programs that listen to a model are asked with."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", help="one of benchmarks/real_models.py")
    parser.add_argument("--arms", type=lambda text: text.split(","), default=arms)
    parser.add_argument("--prompt", type=int, default=prompt)
    parser.add_argument("--layers", type=int, default=0, help="of the decoder (0: all)")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on a CPU: does this program work")
    parser.add_argument("--json", type=Path)
    return parser


def main(words: list[str] | None = None) -> int:
    parser = arguments(__doc__, ["plain", "pio-graph"], 512)
    parser.add_argument("--rows", type=int, default=1, help="of the batch")
    parser.add_argument("--tokens", type=int, default=65, help="new tokens (one more than are listened to)")
    options = parser.parse_args(words)
    found = {arm: _measured(arm, options) for arm in options.arms}
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _measured(arm: str, options: Any) -> Told:
    import torch

    from benchmarks import real_models
    from benchmarks.arms.room import Room
    from benchmarks.arms.table import ARMS

    device = torch.device("cpu" if options.smoke else "cuda")
    model: Any = real_models.build(options.model, device, smoke=options.smoke, layers=options.layers)
    prompt = real_models.prompt(model, options.prompt, rows=options.rows)
    decoder = ARMS[arm].make(model, Room(prompt, options.prompt + options.tokens, options.smoke))
    decoder.decode(prompt, options.tokens)
    layers = model.config.get_text_config().num_hidden_layers
    told = counted(profiled(model, prompt, options.tokens), layers, options.rows)
    del model, decoder
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return told


if __name__ == "__main__":
    sys.exit(main())
