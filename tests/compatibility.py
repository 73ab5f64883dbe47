"""Which pairs of optimizations work together, tried on every tiny model in both orders; writes docs/compatibility.md.

`python -m tests.compatibility` tries all of them (some minutes) and renews the page; tests hold some cells in each run
against the page, in turn, so that it cannot go stale.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from inference_pio.errors import NoEffect, PlanError
from tests import tiny
from tests.sweep import NAMES, PAIRS, Case

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
WORKS, REFUSED, NOTHING = "works", "refused", "no effect"
SIGNS = {WORKS: "✓", REFUSED: "✗", NOTHING: "–"}
LEGEND = """# Compatibility

Every pair of optimizations, on a tiny model of each structure, applied in one plan and one after the other in both
orders: the answers are the same to the bit, and undoing both gives back the model. ✓ works; ✗ is refused in the plan;
– means that one of the two finds nothing to do there, by itself or beside the other (reasons below). Where structures
differ, the letters tell which works: l `llama`, g `gpt2`, q `qwen3`, m `qwen3_moe`, v `qwen3_vl`, 4 `glm4_moe`,
f `glm4_moe_lite`, p a plain net.

Made by `python -m tests.compatibility`; `make test` holds some of it against the code in each run, `make verify` all.
"""
LETTERS = {
    "llama": "l", "gpt2": "g", "qwen3": "q", "qwen3_moe": "m", "qwen3_vl": "v", "glm4_moe": "4", "glm4_moe_lite": "f",
    "plain": "p",
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of a pair on one model, and why where it did not work."""

    kind: str
    reason: str = ""


def tried(pair: Sequence[str], model_name: str) -> Outcome:
    """Apply a pair in all three ways. Raises AssertionError where the ways differ, or undo is not exact."""
    case = Case(model_name)
    if not all(_acts(name, model_name) for name in pair):
        return Outcome(NOTHING)
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
        return Outcome(NOTHING if nothing else REFUSED, _gist(str(refusals[0])))
    assert not refusals, f"{pair} on {model_name} is refused in one order alone: {refusals}"
    assert all(torch.equal(answers[0], other) for other in answers[1:]), f"{pair} on {model_name}: orders differ"
    return Outcome(WORKS)


def _acts(name: str, model_name: str) -> bool:
    return Case(model_name).apply(name)


def _gist(said: str) -> str:
    """A reason without what is this model's own."""
    said = re.sub(r"\s+", " ", said).split(". ")[0].strip(" .")
    said = re.sub(r"does not apply to this \w+", "finds nothing to do", re.sub(r" \(\d+ places\)", "", said))
    said = re.sub(r"at [\w.]+ in one stage", "of the same layers in one stage", said)
    return re.sub(r"the budget is .*", "what always stays is more than its budget, so small are these models", said)


def cell(outcomes: dict[str, Outcome]) -> str:
    """What the page shows of a pair."""
    kinds = {outcome.kind for outcome in outcomes.values()}
    if len(kinds) == 1:
        return SIGNS[kinds.pop()]
    works = "".join(LETTERS[name] for name, outcome in outcomes.items() if outcome.kind == WORKS)
    rest = sorted({SIGNS[outcome.kind] for outcome in outcomes.values() if outcome.kind != WORKS})
    return f"{SIGNS[WORKS] + ' ' + works + ' ' if works else ''}{' '.join(rest)}"


def page_of(found: dict[tuple[str, str], dict[str, Outcome]]) -> str:
    """The page: one table, and the reasons of what does not work where both work alone."""
    numbers = {name: str(place + 1) for place, name in enumerate(NAMES)}
    lines = ["| | " + " | ".join(numbers.values()) + " |", "|---" * (len(NAMES) + 1) + "|"]
    for row in NAMES:
        cells = [
            "" if row == column else cell(found[(row, column) if (row, column) in found else (column, row)])
            for column in NAMES
        ]
        lines.append(f"| {numbers[row]} `{row}` | " + " | ".join(cells) + " |")
    told = [f"- `{pair[0]}` and `{pair[1]}`: {reason}" for pair, reason in _reasons(found)]
    return f"{LEGEND}\n" + "\n".join(lines) + "\n\n## Why not\n\n" + "\n".join(told) + "\n"


def _reasons(found: dict[tuple[str, str], dict[str, Outcome]]) -> Iterable[tuple[tuple[str, str], str]]:
    for pair, outcomes in found.items():
        reasons: dict[str, list[str]] = {}
        for name, outcome in outcomes.items():
            if outcome.reason:
                reasons.setdefault(outcome.reason, []).append(name)
        for reason, names in reasons.items():
            yield pair, f"{reason} ({', '.join(names)})."


def main() -> None:
    found = {}
    for number, pair in enumerate(PAIRS):
        found[pair] = {name: tried(pair, name) for name in tiny.TINY}
        print(f"{number + 1}/{len(PAIRS)} {'+'.join(pair)}: {cell(found[pair])}", file=sys.stderr, flush=True)
    PAGE.write_text(page_of(found))


if __name__ == "__main__":
    main()
