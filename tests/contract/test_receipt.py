"""Receipts tell what was done, and can be written down and read again."""

from __future__ import annotations

import json

from inference_pio.contract.receipt import Receipt
from inference_pio.contract.site import Site

RECEIPT = Receipt(
    name="x", type="memory", stage="storage", parameters={"format": "int8"},
    sites=(Site("a", "mlp.down"), Site("b", skip="kept")), decision={"scale": "row"}, backend="fast", seconds=0.5,
    weight_bytes_before=3_000_000, weight_bytes_after=1_000_000, held_bytes=10, parked_bytes=20, originals="disk",
    notes=("slow",),
)  # fmt: skip


def test_what_acted_is_told_from_what_was_passed_over() -> None:
    assert [site.path for site in RECEIPT.acted] == ["a"]
    data = RECEIPT.to_json()
    assert (data["sites"], data["site_count"]) == (["a"], 1)
    assert data["skipped"] == [{"reason": "kept", "count": 1, "paths": ["b"]}]


def test_a_receipt_read_again_says_the_same_but_has_no_way_back() -> None:
    again = Receipt.from_json(json.loads(json.dumps(RECEIPT.to_json())))
    assert again.to_json() == {**RECEIPT.to_json(), "reversible": False}


def test_one_line_says_it_all() -> None:
    assert str(RECEIPT) == "x: 1 sites, backend fast, weights +2.0 MB saved, 0.50 s"
