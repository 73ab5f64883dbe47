"""`python benchmarks/run.py SUITE ...`: peers and inference-pio in the same run, into benchmarks/results/.

A run can be cut into slices: `--minutes 9 --resume` goes on where the last call stopped, also in another folder or on a
machine that was given this one's results. `--list` predicts how long everything takes, and measures nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# started as a file: its folder is on the path, the repository may not be
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "src")) if path not in sys.path]

from benchmarks import ceilings, compare, earlier, planner, results, waves  # noqa: E402
from benchmarks.pool import InlineWorker, ProcessWorker  # noqa: E402
from benchmarks.suites import SUITES, Suite  # noqa: E402

END_MARGIN_S = 8.0
MOST_AT_ONCE = 7


def main(words: list[str] | None = None) -> int:
    """0 where all went well; 1 where `--check` found a regression; 2 for a wish that cannot be met."""
    options = _options(words)
    if options.list:
        asked = [(SUITES[name], arms or options.arms) for name, arms in (options.suites or _asked(SUITES))]
        print(planner.told(asked, options.minutes * 60))
        return 0
    import torch

    device = "cuda" if torch.cuda.is_available() and not options.smoke else "cpu"
    if options.into:
        options.into.mkdir(parents=True, exist_ok=True)
    os.environ[results.INTO] = str(options.into or "")
    clock = waves.Clock(time.monotonic() + options.minutes * 60 - END_MARGIN_S)
    limits: dict[str, ceilings.Ceilings] = {}
    worst = 0
    for name, arms in options.suites:
        suite = SUITES[name].smoked() if options.smoke else SUITES[name]
        where = "cpu" if suite.cpu else device
        try:
            worst = max(worst, _suite(suite, arms or options.arms, where, options, clock, limits))
        except (results.BadResults, Refused) as error:
            print(f"{name}: {error}", file=sys.stderr)
            worst = 2
    return worst


class Refused(Exception):
    """A wish that cannot be met, in the user's words."""


def _suite(
    suite: Suite, arms: list[str] | None, device: str, options: Any, clock: waves.Clock,
    limits: dict[str, ceilings.Ceilings],
) -> int:  # fmt: skip
    import torch

    from inference_pio.measure import describe_machine

    machine = describe_machine(device)
    name = machine.device if device == "cuda" else f"cpu {suite.threads or machine.threads} threads"
    path = options.out or results.path_of(suite.name, name, options.into or results.FOLDER)
    if options.check:
        recorded = results.read(results.path_of(suite.name, name, results.FOLDER))
        path = options.out or path.with_name(f"checked-{path.name}")
    print(f"{suite.name} on {name} ({machine})", flush=True)
    if device not in limits:
        limits[device] = ceilings.measure(torch.device(device), smoke=options.smoke)
        print(ceilings.table(limits[device]), flush=True)
    found = _begin(suite, name, machine.to_json(), options, limits[device], path)
    _measure(suite, arms, device, found, options, clock, path)
    for line in earlier.told(found):
        print(line, flush=True)
    print(f"{suite.name}: {clock.left():.0f} s left", flush=True)
    if not options.check:
        return 0
    falls = compare.falls(found, recorded)
    print("\n".join(falls) or "nothing fell by more than 20%")
    return 1 if falls else 0


def _begin(
    suite: Suite, device: str, machine: Any, options: Any, limits: ceilings.Ceilings, path: Path
) -> results.Results:
    """New results, or those that this run goes on with."""
    fresh: results.Results = {
        "schema": results.SCHEMA, "suite": suite.name, "title": suite.title, "kind": suite.kind,
        "baseline": suite.baseline, "device": device, "smoke": options.smoke, "date": "",
        "commit": options.commit or machine.pop("commit"), "machine": machine, "settings": suite.settings(),
        "ceilings": limits, "waves": [], "arms": {},
    }  # fmt: skip
    machine.pop("commit", None)
    before = path if path.exists() or options.out else results.path_of(suite.name, device, results.FOLDER)
    if not (options.resume and before.exists()):
        return fresh
    old = results.read(before)
    for key in ("suite", "device", "smoke", "settings"):
        if old[key] != fresh[key]:
            raise Refused(f"{path.name} was measured with another {key} ({old[key]}): run without --resume")
    if old["machine"]["versions"] != machine["versions"]:
        raise Refused(f"{path.name} was measured with other versions: run without --resume")
    if fresh["commit"] and fresh["commit"] not in (old["commit"] or "").split(" and "):
        old["commit"] = " and ".join(filter(None, [old["commit"], fresh["commit"]]))  # each wave says its own
    for arm in options.again:
        old["arms"].pop(arm, None)
    return old


def _measure(
    suite: Suite, arms: list[str] | None, device: str, found: results.Results, options: Any, clock: waves.Clock,
    path: Path,
) -> None:  # fmt: skip
    import torch

    known = {**suite.arms, **suite.optional}
    asked = [arm for arm in (arms or suite.arms) if arm in known]
    if unknown := [arm for arm in arms or [] if arm not in known and len(options.suites) == 1]:
        raise Refused(f"no system {', '.join(unknown)}: this suite knows {', '.join(known)}")
    inline = options.smoke and not options.processes
    start = partial(InlineWorker if inline else ProcessWorker, suite.name)
    walk = waves.Walk(
        suite,
        found,
        clock,
        partial(print, flush=True),
        lambda: results.write(found, path),
        options.time_wrong,
        side_by_side=not inline,
    )
    while pending := [arm for arm in asked if arm not in found["arms"]]:
        small = options.smoke or device == "cpu"
        copied = ceilings.copy(torch.device(device), 10**7 if small else 2 * 10**9, 0.1)
        if device == "cuda":
            torch.cuda.empty_cache()  # what this process holds the systems cannot have
        free = torch.cuda.mem_get_info()[0] / 1e9 if device == "cuda" else float("inf")
        most = 2 if device == "cpu" and not options.smoke else MOST_AT_ONCE
        wave = waves.form(suite, pending, free, clock.left(), clock, most)
        if not wave or clock.left() <= 0:
            print(f"{suite.name}: left for the next slice: {', '.join(pending)}", flush=True)
            break
        number = len(found["waves"])
        found["waves"].append(
            {"arms": wave, "memory copy": copied, "commit": (found["commit"] or "").split(" and ")[-1]}
        )
        waves.run(walk, wave, number, partial(_start, start, device, options.smoke))
        results.write(found, path)
        if not any(arm in found["arms"] for arm in wave):
            print(f"{suite.name}: no time for {', '.join(wave)}", flush=True)
            break


def _start(make: Any, device: str, smoke: bool, arm: str) -> Any:
    return make(arm, device=device, smoke=smoke)


def _asked(words: Iterable[str]) -> list[tuple[str, list[str] | None]]:
    """Suites, and their systems where they are named.

    >>> _asked(["attention", "decode-qwen3-4b:plain,liger"])
    [('attention', None), ('decode-qwen3-4b', ['plain', 'liger'])]
    """
    pairs = [word.partition(":") for word in words]
    return [(name, arms.split(",") if arms else None) for name, _, arms in pairs]


def _options(words: list[str] | None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "suites", nargs="*", metavar="SUITE[:SYSTEM,...]", help=f"in this order; known are {', '.join(sorted(SUITES))}"
    )
    parser.add_argument(
        "--list", action="store_true", help="print the predicted seconds, and how they fall into slices"
    )
    parser.add_argument(
        "--out", type=Path, help="results file (one suite; default: benchmarks/results/SUITE-DEVICE.json)"
    )
    parser.add_argument("--into", type=Path, help="folder of the results files (default: benchmarks/results)")
    parser.add_argument("--minutes", type=float, default=600.0, help="stop before this many minutes are over")
    parser.add_argument("--arms", type=lambda text: text.split(","), help="only these systems, also optional ones")
    parser.add_argument("--resume", action="store_true", help="keep what the results file holds, measure the rest")
    parser.add_argument("--again", type=lambda text: text.split(","), default=[], help="with --resume: these anew")
    parser.add_argument(
        "--time-wrong", action="store_true", help="time wrong systems too; kept beside the results, not among them"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny models on the CPU: does every system run")
    parser.add_argument("--processes", action="store_true", help="with --smoke: processes as in a real run")
    parser.add_argument(
        "--check", action="store_true", help="compare with the recorded results; exit 1 if worse by 20%%"
    )
    parser.add_argument("--commit", help="the commit measured, where git cannot tell")
    options = parser.parse_args(words)
    options.suites = _asked(options.suites)
    for name, arms in options.suites:
        if name not in SUITES:
            parser.error(f"no suite {name}: known are {', '.join(sorted(SUITES))}")
        known = {**SUITES[name].arms, **SUITES[name].optional}
        if unknown := [arm for arm in arms or [] if arm not in known]:
            parser.error(f"no system {', '.join(unknown)} in {name}: it knows {', '.join(known)}")
    if not options.suites and not options.list:
        parser.error(f"name a suite: {', '.join(sorted(SUITES))}")
    if options.out and len(options.suites) > 1:
        parser.error("--out takes the results of one suite")
    if options.smoke and not options.out:
        parser.error("--smoke needs --out: its figures are no results")
    return options


if __name__ == "__main__":
    sys.exit(main())
