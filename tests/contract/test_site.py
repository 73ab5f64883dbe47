"""Sites act or are passed over with a reason."""

from __future__ import annotations

import json

from inference_pio.contract.site import Site, skips_by_reason


def test_a_site_with_a_reason_does_not_act() -> None:
    assert Site("a").acts
    assert not Site("a", skip="tied").acts


def test_skips_are_gathered_by_reason_in_the_order_met() -> None:
    sites = (Site("a", skip="tied"), Site("b"), Site("c", skip="hooked"), Site("d", skip="tied"))
    assert [(skips.reason, skips.paths) for skips in skips_by_reason(sites)] == [
        ("tied", ("a", "d")),
        ("hooked", ("c",)),
    ]


def test_a_site_becomes_plain_data() -> None:
    data = Site("a", "head", claims=frozenset({"y", "x"}), nbytes=3).to_json()
    assert json.loads(json.dumps(data)) == {
        "path": "a", "role": "head", "claims": ["x", "y"], "whole": True, "nbytes": 3,
    }  # fmt: skip
