"""Layers in two factors beside the layers that they were, on this machine: how many times as fast, at half the numbers.

python benchmarks/factored_layers.py --threads 2 --dtype bfloat16
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
# started as a file: its folder is on the path, the repository may not be
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "src")) if path not in sys.path]

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from inference_pio.anatomy.side_by_side import SideBySide  # noqa: E402
from inference_pio.calibration.factors import factors_to_come, layers_of  # noqa: E402
from inference_pio.calibration.ranks import align_of, rank_at  # noqa: E402

LAYERS = {
    "qkv": (2560, (4096, 1024, 1024)),
    "o": (4096, (2560,)),
    "gate and up": (2560, (9728,) * 2),
    "down": (9728, (2560,)),
}
"""Inputs and outputs of a layer of Qwen3-4B."""
ROUNDS, LEAST_S = 9, 0.05


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--ratio", type=float, default=0.5, help="the share of the numbers that is gone")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 512])
    parser.add_argument("--width", type=int, default=0, help="other layers than Qwen3-4B's: all square, so wide")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    square = {"square": (options.width, (options.width,))}
    print(f"{options.dtype}, {options.threads} threads, {1 - options.ratio:.0%} of the numbers: ms (times as fast)")
    for name, (inputs, outputs) in (square if options.width else LAYERS).items():
        layers = nn.ModuleList(nn.Linear(inputs, width, bias=False, dtype=dtype) for width in outputs)
        one = SideBySide(tuple(str(place) for place in range(len(outputs))), inputs, tuple(outputs))
        forms = {form: in_factors(layers, one, options.ratio, form == "pivoted") for form in ("pivoted", "plain")}
        for rows in options.rows:
            print(f"  {name}, {rows} rows: {compared(layers, forms, torch.randn(rows, inputs, dtype=dtype))}")
    return 0


def in_factors(layers: nn.ModuleList, one: SideBySide, ratio: float, pivots: bool) -> Sequence[nn.Module]:
    """The layers in two factors of numbers by chance: speed does not depend on them."""
    outputs = sum(one.outputs)
    rank = rank_at(outputs, one.inputs, ratio, align_of(outputs, one.inputs), pivots)
    if rank is None:
        raise SystemExit(f"no rank leaves {1 - ratio:.0%} of {outputs} x {one.inputs} numbers")
    factors = factors_to_come(layers, [one], {one.name: rank}, pivots)
    for factor in factors.values():
        for tensor in (factor.into, factor.out_of):
            tensor.normal_(0, 0.02)
        if factor.order is not None:
            factor.order.copy_(torch.randperm(one.inputs))
    return list(layers_of(layers, [one], factors).values())


@torch.no_grad()
def compared(layers: Sequence[nn.Module], forms: dict[str, Sequence[nn.Module]], x: Tensor) -> str:
    """The best of rounds taken in turn, since neighbours slow down single ones."""

    def run(taken: Sequence[nn.Module]) -> Callable[[], None]:
        return lambda: [layer(x) for layer in taken].clear()

    calls = {"matrix": run(layers), **{form: run(taken) for form, taken in forms.items()}}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            seconds[name].append(timed(call))
    found = {name: min(times) for name, times in seconds.items()}
    told = [f"{name} {found[name] * 1e3:.3f} ({found['matrix'] / found[name]:.2f}x)" for name in forms]
    return f"matrix {found['matrix'] * 1e3:.3f}, {', '.join(told)}"


def timed(call: Callable[[], None]) -> float:
    call()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < LEAST_S:
        call()
        count += 1
    return (time.perf_counter() - start) / count


if __name__ == "__main__":
    raise SystemExit(main())
