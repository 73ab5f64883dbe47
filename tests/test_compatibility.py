"""The page of pairs says what the pairs do: some of them in each run, each commit the next ones."""

from __future__ import annotations

import re

import pytest

from tests import tiny
from tests.compatibility import PAGE, Outcome, cell, page_of, tried
from tests.sweep import NAMES, PAIRS, rotating, turn_of_this_commit


def shown() -> dict[tuple[str, str], str]:
    """The cells of the page's table."""
    rows = re.findall(r"^\| \d+ `(\w+)` \| (.+) \|$", PAGE.read_text(), re.M)
    cells = {row: [one.strip() for one in line.split(" | ")] for row, line in rows}
    return {(row, column): cells[row][place] for row in cells for place, column in enumerate(NAMES) if row != column}


def test_the_page_has_every_pair() -> None:
    cells = shown()
    assert {pair for pair in cells if pair[0] < pair[1]} == set(PAIRS)
    assert all(cells[(a, b)] == cells[(b, a)] != "" for a, b in PAIRS)


@pytest.mark.parametrize("pair", rotating(PAIRS, turn_of_this_commit(), count=1))
def test_a_pair_does_what_the_page_says(pair: tuple[str, str]) -> None:
    assert cell({name: tried(pair, name) for name in tiny.TINY}) == shown()[pair]


def test_cells_tell_where_structures_differ_and_reasons_are_told() -> None:
    found = {pair: {name: Outcome("works") for name in tiny.TINY} for pair in PAIRS}
    found[PAIRS[0]]["gpt2"] = Outcome("refused", "it has none of these")
    assert cell(found[PAIRS[0]]) == "✓ lqmv4fp ✗"
    assert cell(found[PAIRS[1]]) == "✓"
    assert f"- `{PAIRS[0][0]}` and `{PAIRS[0][1]}`: it has none of these (gpt2)." in page_of(found)
