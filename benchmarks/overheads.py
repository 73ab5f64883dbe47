"""`python benchmarks/overheads.py`: what planning, switching and asking for the status cost on the shape of Qwen3-4B.

Its weights are never touched: they take addresses and no memory. Milliseconds of the best of some rounds, since
neighbours slow down single ones; of the processor's time as well, which they slow down less. Exit 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# started as a file: its folder is on the path, the repository may not be
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "src")) if path not in sys.path]

import torch  # noqa: E402
import transformers  # noqa: E402
from torch import nn  # noqa: E402

import inference_pio  # noqa: E402
from benchmarks.real_models import RECIPES  # noqa: E402
from inference_pio.files import write_atomically  # noqa: E402
from inference_pio.manager import ModularOptimizationManager  # noqa: E402
from inference_pio.measure import describe_machine  # noqa: E402

RECORD = Path(__file__).parent / "results" / "overheads-cpu.json"
PROFILES = ("lossless", "balanced", "performance", "memory_efficient")
BARS_MS = {**{f"plan of {profile}": 1000.0 for profile in PROFILES}, "flash_attention off": 50.0,
           "flash_attention on": 50.0, "status": 5.0}  # fmt: skip
ROUNDS = 8
Figures = dict[str, dict[str, float]]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="keep this machine's figures beside the other results")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    found = measure(shape_of("qwen3-4b"))
    for name, figure in found.items():
        bar = f", bar {BARS_MS[name]:.0f}" if name in BARS_MS else ""
        print(f"{name:25} {figure['ms']:8.2f} ms, {figure['processor_ms']:8.2f} ms of the processor{bar}")
    if options.record:
        record(found)
    return int(any(found[name]["ms"] > bar for name, bar in BARS_MS.items()))


def shape_of(name: str, *, smoke: bool = False) -> nn.Module:
    """A model of the real shape on the CPU: its weights are addresses until somebody writes to them."""
    recipe = RECIPES[name]
    config = getattr(transformers, recipe.config)(**(recipe.tiny if smoke else recipe.real))
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = model.to_empty(device="cpu").eval()
    model.tie_weights()
    return model  # type: ignore[no-any-return]


def measure(model: nn.Module, rounds: int = ROUNDS) -> Figures:
    """What each call costs; and whether a model that has nothing applied is called as it was before."""
    manager, found = ModularOptimizationManager(), Figures()
    plain = set(vars(model)), type(model).forward, model.forward.__func__  # type: ignore[attr-defined]
    for profile in PROFILES:
        found[f"plan of {profile}"] = best(
            [timed(lambda wanted=profile: inference_pio.plan(model, wanted)) for _ in range(rounds)]
        )
    on, off, status = [], [], []
    for _ in range(rounds):
        on.append(timed(lambda: manager.apply_optimizations(model, ["flash_attention"])))
        status.append(timed(lambda: manager.get_optimization_status(model)))
        off.append(timed(lambda: manager.remove_optimizations(model, ["flash_attention"])))
    found |= {"flash_attention on": best(on), "flash_attention off": best(off), "status": best(status)}
    assert plain == (set(vars(model)), type(model).forward, model.forward.__func__)  # type: ignore[attr-defined]
    found["forward, nothing applied"] = {"ms": 0.0, "processor_ms": 0.0}  # the very function that it was
    return found


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    began, used = time.perf_counter(), time.process_time()
    call()
    return 1e3 * (time.perf_counter() - began), 1e3 * (time.process_time() - used)


def best(rounds: list[tuple[float, float]]) -> dict[str, float]:
    """The least of each: what stands in its way is chance.

    >>> best([(3.0, 2.0), (2.5, 2.25)])
    {'ms': 2.5, 'processor_ms': 2.0}
    """
    return {"ms": min(wall for wall, _ in rounds), "processor_ms": min(used for _, used in rounds)}


def record(found: Figures) -> None:
    told = {
        "what": "milliseconds, the best of 8 rounds, on the shape of Qwen3-4B; benchmarks/overheads.py --record",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": str(describe_machine()),
        "figures": {name: {key: round(value, 2) for key, value in one.items()} for name, one in found.items()},
    }
    write_atomically(RECORD, json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
