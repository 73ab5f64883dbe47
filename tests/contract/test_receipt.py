from __future__ import annotations

import json
from typing import Any

import pytest

from inference_pio.contract.receipt import Receipt
from inference_pio.contract.site import Site


def receipt(**changed: Any) -> Receipt:
    known: dict[str, Any] = {
        "name": "tensor_compression", "type": "memory", "stage": "storage", "parameters": {"format": "int8"},
        "sites": (Site("a"), Site("b", skip="tied"), Site("c")), "decision": {"scale": "row"}, "backend": "native",
        "seconds": 1.23456789, "weight_bytes_before": 4_000_000, "weight_bytes_after": 1_500_000, "held_bytes": 0,
        "parked_bytes": 4_000_000, "originals": "disk",
    }  # fmt: skip
    return Receipt(**{**known, **changed})


def test_a_receipt_is_plain_data() -> None:
    data = json.loads(json.dumps(receipt(notes=("told",)).to_json()))
    assert (data["sites"], data["site_count"]) == (["a", "c"], 2)
    assert data["skipped"] == [{"reason": "tied", "count": 1, "paths": ["b"]}]
    assert (data["seconds"], data["reversible"], data["notes"]) == (1.234568, True, ["told"])


def test_a_receipt_read_again_says_the_same_but_has_no_way_back() -> None:
    again = Receipt.from_json(json.loads(json.dumps(receipt().to_json())))
    assert again.to_json() == {**receipt().to_json(), "reversible": False}


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({}, "tensor_compression: 2 sites, backend native, weights +2.5 MB saved, 1.23 s"),
        ({"backend": None, "weight_bytes_after": 4_000_000}, "tensor_compression: 2 sites, 1.23 s"),
        (
            {"weight_bytes_after": 5_000_000},
            "tensor_compression: 2 sites, backend native, weights -1.0 MB saved, 1.23 s",
        ),
    ],
)
def test_a_receipt_reads_as_one_line(changed: dict[str, Any], text: str) -> None:
    assert str(receipt(**changed)) == text
