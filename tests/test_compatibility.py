"""The page of pairs says what the pairs do: some of them in each run, each commit the next ones."""

from __future__ import annotations

import json

import pytest

from tests import tiny
from tests.compatibility import DATA, PAGE, plain_data, recorded, tried
from tests.compatibility_page import key, page_of, reasons, structure_sign, worst
from tests.quality.combinations import EXACT, NOTHING, REFUSED, WORKS, Cell, triples, why_wrong
from tests.quality.reference_models import NAMES as FAMILIES
from tests.sweep import NAMES, PAIRS, rotating, turn_of_this_commit


def test_the_page_is_written_from_what_was_tried() -> None:
    assert PAGE.read_text(encoding="utf-8") == page_of(recorded())


def test_every_pair_and_triple_was_tried_on_every_model() -> None:
    data = recorded()
    assert set(data["alone"]) == set(NAMES)
    assert set(data["pairs"]) == set(data["structures"]) == {key(pair) for pair in PAIRS}
    assert set(data["triples"]) == {key(names) for names in triples()}
    for part in ("alone", "pairs", "triples"):
        assert all(set(cells) == set(FAMILIES) for cells in data[part].values())
    assert all(set(cells) == set(tiny.TINY) for cells in data["structures"].values())
    assert set(data["made"]) == {"commit", "torch", "transformers", "python"}


def test_no_cell_is_wrong_output() -> None:
    data = recorded()
    wrong = {}
    for part in ("alone", "pairs", "triples"):
        for names, cells in data[part].items():
            for family, plain in cells.items():
                cell = Cell(**plain)
                costs = [Cell(**data["alone"][name][family]).kl for name in names.split("+")]
                assert cell.kind in (WORKS, REFUSED, NOTHING)
                if cell.kind == WORKS and (why := why_wrong(names.split("+"), cell, costs, data["chance"][family])):
                    wrong[names, family] = why
    assert wrong == {}


def test_what_is_refused_or_finds_nothing_to_do_has_a_reason() -> None:
    data = recorded()
    told = dict(reasons(data))
    for names, cells in data["pairs"].items():
        for family, cell in cells.items():
            alone = [data["alone"][name][family]["kind"] for name in names.split("+")]
            assert cell["kind"] == WORKS or cell.get("reason") or NOTHING in alone, (names, family)
    assert "both claim 'attention.pattern'" in told["adaptive_sparse_attention", "sparse_attention"]


@pytest.mark.parametrize("pair", rotating(PAIRS, turn_of_this_commit(), count=1))
def test_a_pair_does_on_each_structure_what_the_page_says(pair: tuple[str, str]) -> None:
    found = {name: plain_data(tried(pair, name)) for name in tiny.TINY}
    assert structure_sign(found) == structure_sign(recorded()["structures"][key(pair)])


def test_cells_tell_where_models_differ() -> None:
    found = {name: {"kind": WORKS} for name in tiny.TINY}
    assert structure_sign(found) == "✓"
    found["gpt2"] = {"kind": REFUSED, "reason": "it has none of these"}
    assert structure_sign(found) == "✓ lqmv4fp ✗"
    cells = {"a": {"kind": WORKS, "kl": 0.01}, "b": {"kind": WORKS, "kl": 0.2}}
    assert worst(cells, "kl") == "0.2"
    assert worst({"a": {"kind": REFUSED}, "b": {"kind": NOTHING}}, "kl") == "– ✗"


@pytest.mark.parametrize(
    ("names", "cell", "costs", "told"),
    [
        (("flash_attention",), Cell(WORKS, kl=1e-8), [0.0], "KL 1e-08"),
        (("flash_attention",), Cell(WORKS, same_tokens=False), [0.0], "other tokens"),
        (("tensor_compression", "sparse_attention"), Cell(WORKS, kl=0.01), [0.001, 0.001], "allow 0.006"),
        (("structured_pruning", "sparse_attention"), Cell(WORKS, kl=0.4), [0.2, 0.2], "is chance"),
        (("tensor_compression",), Cell(WORKS, kl=0.001, regret=0.2), [0.001], "misses the best"),
    ],
)
def test_wrong_output_is_told(names: tuple[str, ...], cell: Cell, costs: list[float], told: str) -> None:
    assert told in str(why_wrong(names, cell, costs, chance=5.0))
    assert why_wrong(names, Cell(WORKS, kl=min(EXACT, cell.kl)), costs, chance=5.0) is None


def test_the_data_is_one_line_for_each_entry() -> None:
    assert max(map(len, DATA.read_text(encoding="utf-8").splitlines())) < 1500
    assert json.loads(DATA.read_text(encoding="utf-8")) == recorded()
