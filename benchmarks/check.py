"""`make bench-check`: is what inference-pio gains on a CPU still gained? Ratios of one run against recorded ones.

A ratio that fell by more than a fifth fails the check and is named. Ratios, not speeds, because machines differ;
the best round of each of the arms timed in turn, because neighbours slow down single rounds (medians of a model beside
itself strayed by 17%); before failing, once more.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# started as a file: its folder is on the path, the repository may not be
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "src")) if path not in sys.path]

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import inference_pio  # noqa: E402
from benchmarks.compare import fallen  # noqa: E402
from inference_pio.compat import has_fast_bfloat16_matmul  # noqa: E402
from inference_pio.files import write_atomically  # noqa: E402
from inference_pio.measure import describe_machine, measure_speed_interleaved, weight_bytes  # noqa: E402

RECORD = Path(__file__).parent / "results" / "check-cpu.json"
ROUNDS, NEW_TOKENS, PROMPT_TOKENS, DECODE_PROMPT_TOKENS = 8, 16, 256, 32
RECORDED_RUNS = 3
SAME_ANYWHERE = "weight bytes"
"""Ratios whose names begin so do not depend on the kind of CPU."""

Ratios = dict[str, float]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="keep this machine's ratios as those to hold")
    options = parser.parse_args(words)
    began = time.monotonic()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    model, prompt = demo()
    kind = kind_of_cpu()

    def measured() -> Ratios:
        return measure(make_arms(model), prompt)  # copies of their own: where their weights lie in memory is chance

    if options.record:
        record(RECORD, kind, middle([measured() for _ in range(RECORDED_RUNS)]))
        print(f"recorded for {kind} in {RECORD.relative_to(ROOT)}")
        return 0
    lines = hold(measured, json.loads(RECORD.read_text()), kind)
    print("\n".join(lines) if lines else f"bench-check: no ratio fell ({time.monotonic() - began:.0f} s)")
    return 1 if lines else 0


def demo() -> tuple[nn.Module, Tensor]:
    """The demo model in bfloat16, and the tokens of some text."""
    from inference_pio.sources.open import open_model

    opened = open_model("demo", dtype=torch.bfloat16)
    text = inference_pio.measure.evaluation_text()
    tokens = opened.tokenizer(text[: 16 * PROMPT_TOKENS], return_tensors="pt").input_ids  # type: ignore[misc]
    return opened.model, tokens[:, :PROMPT_TOKENS]


def make_arms(plain: nn.Module) -> dict[str, nn.Module]:
    """The plain model, one in each CPU profile, and one that was optimized and restored: it must cost nothing more.

    All are copies: weights as they were loaded may lie in smaller pages than copies do, and run slower.
    """
    arms = {name: copy.deepcopy(plain) for name in ("plain", "lossless", "balanced", "restored")}
    inference_pio.optimize(arms["lossless"], "lossless")
    inference_pio.optimize(arms["balanced"], "balanced")
    inference_pio.restore(inference_pio.optimize(arms["restored"], "balanced"))
    return arms


def measure(
    arms: Mapping[str, nn.Module], prompt: Tensor, rounds: int = ROUNDS, new_tokens: int = NEW_TOKENS
) -> Ratios:
    """All ratios, more is better: speeds over the plain model's, and how many times smaller the weights are."""
    timed = measure_speed_interleaved(arms, prompt, new_tokens, rounds, decode_prompt_tokens=DECODE_PROMPT_TOKENS)
    ratios = {f"{SAME_ANYWHERE}, plain over balanced": weight_bytes(arms["plain"]) / weight_bytes(arms["balanced"])}
    for word, quantity in (("decode", "decode_tokens_per_s"), ("prefill", "prefill_tokens_per_s")):
        for name in arms:
            if name != "plain":
                best = {arm: max(getattr(timed.speeds[arm], quantity).samples) for arm in (name, "plain")}
                ratios[f"{word}, {name} over plain"] = best[name] / best["plain"]
    return ratios


def middle(runs: Sequence[Ratios]) -> Ratios:
    """The median of each ratio.

    >>> middle([{"a": 1.0}, {"a": 3.0}, {"a": 2.0}])
    {'a': 2.0}
    """
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def hold(measured: Callable[[], Ratios], recorded: Mapping[str, Any], kind: str) -> list[str]:
    """What fell, a line each; what fell is measured once more, and must have fallen twice."""
    known = recorded["ratios"]
    wanted = known.get(kind)
    if wanted is None:
        print(
            f"bench-check: no speeds are recorded for {kind} (recorded: {', '.join(known)}); weight bytes are compared."
        )
        wanted = {name: value for name, value in next(iter(known.values())).items() if name.startswith(SAME_ANYWHERE)}
    now = measured()
    show(now, wanted)
    if missing := [f"{name} was recorded and is measured no more" for name in wanted if name not in now]:
        return missing
    if not fallen(now, wanted):
        return []
    again = measured()
    print("once more:")
    show(again, wanted)
    return fallen({name: max(value, again[name]) for name, value in now.items()}, wanted)


def show(now: Ratios, wanted: Ratios) -> None:
    for name, value in now.items():
        before = f"recorded {wanted[name]:.3f}" if name in wanted else "not recorded"
        print(f"  {name:<38}{value:7.3f}   {before}")


def record(path: Path, kind: str, ratios: Ratios) -> None:
    """Ratios of this kind of CPU; those of other kinds stay."""
    known = json.loads(path.read_text())["ratios"] if path.exists() else {}
    machine = describe_machine()
    written = {
        "what": "ratios of one run, more is better; python benchmarks/check.py --record writes them",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": machine.commit, "machine": str(machine), "ratios": known | {kind: ratios},
    }  # fmt: skip
    show(ratios, known.get(kind, {}))
    write_atomically(path, json.dumps(written, indent=1) + "\n")


def kind_of_cpu() -> str:
    """What decides int8 against bfloat16: the vector width, and whether bfloat16 products are native."""
    native = "native" if has_fast_bfloat16_matmul() else "emulated"
    return f"{torch.backends.cpu.get_cpu_capability()}, bfloat16 {native}"


if __name__ == "__main__":
    sys.exit(main())
