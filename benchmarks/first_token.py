"""`python benchmarks/first_token.py qwen3-4b`: seconds until a user who applies and calls `generate` reads a token.

A fresh process each, one after another: `cold` with caches that are empty (kernels, tuned launches), `warm` with what
it left there, and `profiled`, cold again while Python is listened to, which costs time itself: shares, not speeds.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# started as a file: its folder is on the path, the repository may not be
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "src")) if path not in sys.path]

RUNS = ("cold", "warm", "profiled")
MOST_FUNCTIONS = 25
PACKAGE = f"{os.sep}inference_pio{os.sep}"

Told = dict[str, Any]


class Phases:
    """Seconds of what comes in turn, each until the GPU has done it; with `listening`, where Python spent them."""

    def __init__(self, wait: Callable[[], None], *, listening: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self.functions: dict[str, Told] = {}
        self._wait, self._listening = wait, listening

    def take(self, name: str, deed: Callable[[], Any]) -> Any:
        self._wait()
        profiler, begun = cProfile.Profile() if self._listening else None, time.perf_counter()
        done = profiler.runcall(deed) if profiler else deed()
        self._wait()
        self.seconds[name] = time.perf_counter() - begun
        if profiler:
            self.functions[name] = spent(profiler)
        return done


def spent(profiler: cProfile.Profile) -> Told:
    """This package's functions by what they and all below them took, and everybody's by what they took themselves."""
    stats: dict[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    rows = [
        {"function": _named(*place), "ours": PACKAGE in place[0], "calls": calls, "own_s": round(own, 4),
         "cumulative_s": round(cumulative, 4)}
        for place, (_, calls, own, cumulative, _) in stats.items()
    ]  # fmt: skip
    ours = sorted((row for row in rows if row["ours"]), key=lambda row: -row["cumulative_s"])
    return {"ours": ours[:MOST_FUNCTIONS], "own": sorted(rows, key=lambda row: -row["own_s"])[:MOST_FUNCTIONS]}


def _named(file: str, line: int, function: str) -> str:
    """
    >>> _named("/somewhere/site-packages/triton/compiler/compiler.py", 226, "compile")
    'triton/compiler/compiler.py:226 compile'
    """
    for root in ("site-packages/", "src/", "lib/python"):
        file = file.rpartition(root)[2]
    return f"{file}:{line} {function}"


def measured(name: str, *, tiny: bool = False, layers: int = 0, listening: bool = False) -> Told:
    """Build a model, apply level graph beside flash_attention, and ask for two tokens twice."""
    import torch

    import inference_pio
    from benchmarks import real_models
    from benchmarks.arms.ours import fuse
    from inference_pio.decoding.takeover import engine_of

    device = torch.device("cpu" if tiny else "cuda")
    phases = Phases(lambda: None if tiny else torch.cuda.synchronize(), listening=listening)
    phases.take("import", lambda: inference_pio.get_optimization_manager())  # and finds all optimizations
    model: Any = phases.take("build", lambda: real_models.build(name, device, smoke=tiny, layers=layers))
    prompt = real_models.prompt(model, 24 if tiny else 512)

    def generate() -> Any:
        how = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 2, "do_sample": False}
        return model.generate(input_ids=prompt, **how)

    phases.take("apply", lambda: fuse(model, "graph"))
    engine = engine_of(model)
    if engine is None:
        raise RuntimeError("generate was not taken over")
    tuned_s = _timed(engine.operations, "prepare")
    first, second = (phases.take(call, generate) for call in ("first call", "second call"))
    if not torch.equal(first, second):
        raise RuntimeError("two calls gave two texts")
    return {
        "seconds": phases.seconds, "tuning_s": sum(tuned_s), "engine": engine.counts.to_json(), "notes": engine.notes,
        "functions": phases.functions,
    }  # fmt: skip


def _timed(owner: Any, deed: str) -> list[float]:
    """Seconds of each call of an object's method from here on."""
    inner, taken = getattr(owner, deed), list[float]()

    def timed(*given: Any, **how: Any) -> Any:
        begun = time.perf_counter()
        try:
            return inner(*given, **how)
        finally:
            taken.append(time.perf_counter() - begun)

    setattr(owner, deed, timed)
    return taken


def table(found: Mapping[str, Told]) -> str:
    """A line a run, then what was listened to, the costliest first."""
    lines = []
    for run, told in found.items():
        if "failed" in told:
            lines.append(f"{run:<9} FAILED: {told['failed']}")
            continue
        taken, counts = told["seconds"], told["engine"]
        lines.append(
            f"{run:<9} apply {taken['apply']:.2f} s, first call {taken['first call']:.2f} s (finding launches "
            f"{told['tuning_s']:.2f} s, {counts['recorded']} recordings {counts['recording_s']:.2f} s), second call "
            f"{taken['second call']:.3f} s; built in {taken['build']:.1f} s, process {told['process_s']:.1f} s"
        )
        lines += [f"          {note}" for note in told["notes"]]
        for phase in ("apply", "first call"):
            for kind, seconds in (("ours", "cumulative_s"), ("own", "own_s")):
                rows = told["functions"].get(phase, {}).get(kind, [])
                lines += [f"  {phase}, {'with all below' if kind == 'ours' else 'in itself'}:"] * bool(rows)
                lines += [f"    {row[seconds]:8.3f} s {row['calls']:7} x  {row['function']}" for row in rows]
    return "\n".join(lines)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="one of benchmarks/real_models.py")
    parser.add_argument("--runs", type=lambda text: text.split(","), default=list(RUNS), help=f"of {', '.join(RUNS)}")
    parser.add_argument("--layers", type=int, default=0, help="of the decoder (0: all)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on a CPU: does this program work")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--here", action="store_true", help="one run, in this process, with the caches that it finds")
    options = parser.parse_args(words)
    if unknown := set(options.runs) - set(RUNS):
        parser.error(f"no run {', '.join(sorted(unknown))}: there are {', '.join(RUNS)}")
    if options.here:
        listening = options.runs == ["profiled"]
        found = measured(options.model, tiny=options.tiny, layers=options.layers, listening=listening)
        options.json.write_text(json.dumps(found) + "\n")
        return 0
    found = _in_processes(options)
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps({"model": options.model, "layers": options.layers, "runs": found}, indent=1))
    return 1 if any("failed" in told for told in found.values()) else 0


def _in_processes(options: Any) -> dict[str, Told]:
    """`cold` and `warm` share a folder of caches, `profiled` begins with an empty one."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for run in options.runs:
            caches, out = Path(folder, "profiled" if run == "profiled" else "shared"), Path(folder, f"{run}.json")
            words = ["--here", "--runs", run, "--layers", str(options.layers), "--json", str(out)]
            command = [sys.executable, str(Path(__file__)), options.model, *words, *["--tiny"] * options.tiny]
            begun = time.monotonic()
            ended = subprocess.run(command, env=_environment(caches), capture_output=True, text=True, check=False)
            if ended.returncode:
                print(f"--- {run}, the end of its log\n{(ended.stdout + ended.stderr)[-4000:]}", flush=True)
                found[run] = {"failed": f"its process ended with code {ended.returncode}"}
                continue
            found[run] = json.loads(out.read_text()) | {"process_s": time.monotonic() - begun}
    return found


def _environment(caches: Path) -> dict[str, str]:
    places = {"INFERENCE_PIO_CACHE": str(caches / "ours"), "TRITON_CACHE_DIR": str(caches / "triton")}
    path = ":".join(filter(None, [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, **places, "PYTHONPATH": path}


if __name__ == "__main__":
    sys.exit(main())
