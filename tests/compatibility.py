"""Which optimizations work together, tried on tiny and on trained models; writes docs/compatibility.{json,md}.

`python -m tests.compatibility` tries all of it (some 20 minutes of one core) and renews both; tests hold some cells in
each run against them, in turn, so that they cannot go stale. `--only` tries a part and keeps the rest.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from inference_pio.errors import NoEffect, PlanError
from inference_pio.files import write_atomically
from tests import tiny
from tests.compatibility_page import key, page_of
from tests.quality.combinations import (
    NOTHING,
    REFUSED,
    WORKS,
    Cell,
    Plain,
    alone,
    gist,
    pair_tried,
    together,
    triples,
)
from tests.quality.reference_models import NAMES as FAMILIES
from tests.sweep import NAMES, PAIRS, Case

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
DATA = PAGE.with_suffix(".json")
PARTS = ("structures", "alone", "pairs", "triples")


def recorded() -> dict[str, Any]:
    """What was tried last."""
    found: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return found


def tried(pair: Sequence[str], model_name: str) -> Cell:
    """Apply a pair to a tiny model in all three ways.

    Raises AssertionError where the ways differ, or undo is not exact.
    """
    case = Case(model_name)
    if not all(Case(model_name).apply(name) for name in pair):
        return Cell(NOTHING)
    answers: list[torch.Tensor] = []
    refusals: list[PlanError] = []
    for calls in ([tuple(pair)], [(pair[0],), (pair[1],)], [(pair[1],), (pair[0],)]):
        try:
            for names in calls:
                case.manager.apply_optimizations(case.model, list(names))
            answers.append(tiny.logits(case.model, model_name))
        except PlanError as error:
            refusals.append(error)
        case.manager.remove_optimizations(case.model)
        case.check_untouched()
    if refusals and not answers:
        nothing = all(isinstance(error, NoEffect) for error in refusals)
        return Cell(NOTHING if nothing else REFUSED, gist(refusals[0]))
    assert not refusals, f"{pair} on {model_name} is refused in one order alone: {refusals}"
    assert all(torch.equal(answers[0], other) for other in answers[1:]), f"{pair} on {model_name}: orders differ"
    return Cell(WORKS)


def plain_data(cell: Cell) -> dict[str, Any]:
    """A cell in few letters: what is as for a plain model is left out."""
    usual = asdict(Cell(cell.kind))
    kept = {name: value for name, value in asdict(cell).items() if name == "kind" or value != usual[name]}
    figures = {"kl": cell.kl, "bytes_share": cell.bytes_share} if cell.kl or cell.bytes_share != 1.0 else {}
    return {
        name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in (kept | figures).items()
    }


def _each(what: str, all_names: Iterable[Sequence[str]], on: Iterable[str], act: Callable[..., Cell]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    models = list(on)
    for names in all_names:
        found[key(names)] = {model: plain_data(act(names, model)) for model in models}
        print(f"{what} {key(names)}: {found[key(names)]}", file=sys.stderr, flush=True)
    return found


def tries(part: str) -> dict[str, Any]:
    """Try one part of what is recorded."""
    if part == "structures":
        return {part: _each(part, PAIRS, tiny.TINY, tried)}
    if part == "alone":
        chance = {family: round(Plain.of(family).chance, 3) for family in FAMILIES}
        return {
            part: _each(part, [(n,) for n in NAMES], FAMILIES, lambda one, on: alone(one[0], on)[0]),
            "chance": chance,
        }
    if part == "pairs":
        return {part: _each(part, PAIRS, FAMILIES, pair_tried)}
    return {part: _each(part, triples(), FAMILIES, together)}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="try this part, keep the rest")
    asked = parser.parse_args(words).only or PARTS
    transformers.utils.logging.disable_progress_bar()
    found = recorded() if DATA.exists() else {}
    for part in asked:
        found |= tries(part)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=PAGE.parent, capture_output=True, text=True)
    found["made"] = {
        "commit": commit.stdout.strip(), "torch": torch.__version__, "transformers": transformers.__version__,
        "python": sys.version.split()[0],
    }  # fmt: skip
    write(found)


def write(found: dict[str, Any]) -> None:
    """Keep what was tried, and write the page from it once there is something of each part."""
    lines = ",\n".join(f" {json.dumps(name)}: {_rows(value)}" for name, value in sorted(found.items()))
    write_atomically(DATA, f"{{\n{lines}\n}}\n")
    if set(PARTS) <= set(found):
        write_atomically(PAGE, page_of(found))


def _rows(value: dict[str, Any]) -> str:
    """One line for each entry, so that a change shows where it is."""
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items())
    return f"{{\n{rows}\n }}"


if __name__ == "__main__":
    main()
