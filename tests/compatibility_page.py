"""docs/compatibility.md, written from what was tried: tables that show the worst of all models, and reasons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.quality.combinations import AGAINST_CHANCE, EXACT, NOTHING, REFUSED, TOGETHER, WORKS, Cell, most_together
from tests.sweep import NAMES, PAIRS

SIGNS = {WORKS: "✓", REFUSED: "✗", NOTHING: "–"}
LETTERS = {
    "llama": "l", "gpt2": "g", "qwen3": "q", "qwen3_moe": "m", "qwen3_vl": "v", "glm4_moe": "4", "glm4_moe_lite": "f",
    "plain": "p",
}  # fmt: skip
Cells = Mapping[str, Mapping[str, Any]]
"""What became of some optimizations on each model, as plain data."""
TOP = """# Compatibility

Every pair of optimizations is tried on every trained [reference model](reference-models.md): one after the other, the
first taken away, put back on top, the other taken away, and nothing left. In each state the answers are those that this
very set of optimizations gives, to the bit, however it was reached (on 96 tokens, of which the sparse
patterns drop none yet); at the end the model is what it was. The tables show the worst of five models; each model's own
figures, and the versions, are in [compatibility.json](compatibility.json). All of it is written by
`python -m tests.compatibility`; `make test` holds some cells against the code in each run, `make verify` all of them.

## What answers lose, and what it takes

Above the diagonal: by how much answers to held-out text move, as KL in nats a token beside the plain model. Below it:
weights and what is held for undo, over the plain model's weights. On it: both for one alone. ✗ is refused in the plan;
– means that one of the two finds nothing to do; 3/5 that it does on three of the five models. In float32, so that
rounding hides nothing: int8 is a quarter there, and originals that a second step no longer finds in the checkpoint are
held, which `keep_originals="disk"` or `"none"` ends.
"""
BOUND = """
No cell is wrong output, by these bounds, which tests hold: where every part is exact, {exact:.0e} nats and the plain
model's very tokens; else at most {together} times the square of the sum of the roots of what the parts cost alone (two
errors in one direction add up as the roots of their divergences do) and {chance:.0%} of what a model loses that holds
every token equally likely ({least:.1f} nats here). What `generate` says step by step is the best of the same model's
own forward, within 0.1 nats a token. The pair that comes nearest to its bound, {nearest},
costs {share:.0%} of it.
"""
TRIPLES = """
## Three at once

Every three members of a shipped profile, on whatever class of hardware, in one plan.
"""
STRUCTURES = """
## On which structures

The same pairs on a tiny model of each structure, applied in one plan and in both orders. ✓ works, ✗ and – as above.
Where structures differ, the letters tell which works: l `llama`, g `gpt2`, q `qwen3`, m `qwen3_moe`, v `qwen3_vl`,
4 `glm4_moe`, f `glm4_moe_lite`, p a plain net.
"""


def key(names: Sequence[str]) -> str:
    return "+".join(names)


def structure_sign(cells: Cells) -> str:
    """What the table of structures shows of a pair."""
    kinds = {cell["kind"] for cell in cells.values()}
    if len(kinds) == 1:
        return SIGNS[kinds.pop()]
    works = "".join(LETTERS[name] for name, cell in cells.items() if cell["kind"] == WORKS)
    rest = sorted({SIGNS[cell["kind"]] for cell in cells.values() if cell["kind"] != WORKS})
    return f"{SIGNS[WORKS] + ' ' + works + ' ' if works else ''}{' '.join(rest)}"


def worst(cells: Cells, what: str) -> str:
    """The largest figure among the models on which it works, and on how many it does, if not on all.

    >>> worst({"a": {"kind": "works", "kl": 0.0123}, "b": {"kind": "no effect"}}, "kl")
    '0.012 1/2'
    """
    found = [getattr(Cell(**cell), what) for cell in cells.values() if cell["kind"] == WORKS]
    if not found:
        return " ".join(sorted({SIGNS[cell["kind"]] for cell in cells.values()}))
    some = "" if len(found) == len(cells) else f" {len(found)}/{len(cells)}"
    return (f"{max(found):.0%}" if what == "bytes_share" else shown(max(found))) + some


def shown(kl: float) -> str:
    """A divergence in few letters.

    >>> shown(2e-12), shown(0.000217), shown(0.1149)
    ('0', '2.2e-4', '0.11')
    """
    if kl <= EXACT:
        return "0"
    return f"{kl:.2g}" if kl >= 0.001 else f"{kl:.1e}".replace("e-0", "e-")


def page_of(data: Mapping[str, Any]) -> str:
    """The whole page."""
    parts = [TOP, _table(data), _bounds(data), TRIPLES, _triples(data), STRUCTURES, _structures(data), "\n## Why not\n"]
    told = [f"- `{one}` and `{other}`: {reason}" for (one, other), reason in reasons(data)]
    made = data["made"]
    end = f"\nTried at commit {made['commit']} with torch {made['torch']} and transformers {made['transformers']}.\n"
    return "\n".join([*parts, "\n".join(told), end])


def _table(data: Mapping[str, Any]) -> str:
    def cell(row: str, column: str) -> str:
        if row == column:
            alone = data["alone"][row]
            return f"**{worst(alone, 'kl')}, {worst(alone, 'bytes_share').split()[0]}**"
        above = NAMES.index(row) < NAMES.index(column)
        return worst(data["pairs"][key(sorted((row, column)))], "kl" if above else "bytes_share")

    return _square(cell)


def _structures(data: Mapping[str, Any]) -> str:
    return _square(
        lambda row, column: "" if row == column else structure_sign(data["structures"][key(sorted((row, column)))])
    )


def _square(cell: Any) -> str:
    numbers = {name: str(place + 1) for place, name in enumerate(NAMES)}
    lines = ["| | " + " | ".join(numbers.values()) + " |", "|---" * (len(NAMES) + 1) + "|"]
    rows = (f"| {numbers[row]} `{row}` | " + " | ".join(cell(row, column) for column in NAMES) + " |" for row in NAMES)
    return "\n".join([*lines, *rows])


def _triples(data: Mapping[str, Any]) -> str:
    lines = ["| members | KL, nats a token | bytes |", "|---|---|---|"]
    for names, cells in data["triples"].items():
        words = ", ".join(f"`{name}`" for name in names.split("+"))
        lines.append(f"| {words} | {worst(cells, 'kl')} | {worst(cells, 'bytes_share').split()[0]} |")
    return "\n".join(lines)


def _bounds(data: Mapping[str, Any]) -> str:
    share, nearest = max(
        (cell["kl"] / most_together([data["alone"][name][family].get("kl", 0.0) for name in pair]), pair)
        for pair in PAIRS
        for family, cell in data["pairs"][key(pair)].items()
        if cell.get("kl", 0.0) > EXACT
    )
    words = " and ".join(f"`{name}`" for name in nearest)
    least = min(data["chance"].values())
    return BOUND.format(exact=EXACT, together=TOGETHER, chance=AGAINST_CHANCE, least=least, nearest=words, share=share)


def reasons(data: Mapping[str, Any]) -> Iterable[tuple[tuple[str, str], str]]:
    """Why two do not work together where each works alone, with the tiny models of which it is true."""
    for pair in PAIRS:
        told: dict[str, list[str]] = {}
        for name, cell in data["structures"][key(pair)].items():
            if cell.get("reason"):
                told.setdefault(cell["reason"], []).append(name)
        for reason, names in told.items():
            yield pair, f"{reason} ({', '.join(names)})."
