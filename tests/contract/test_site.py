from __future__ import annotations

import json

from inference_pio.contract.site import Site, skips_by_reason


def test_a_site_acts_unless_it_says_why_not() -> None:
    assert Site("a").acts
    assert not Site("a", skip="tied").acts
    assert not Site("a", skip="").acts


def test_a_site_is_plain_data_without_what_is_empty() -> None:
    full = Site("a.b", "router", frozenset({"z", "y"}), "tied", False, 12)
    assert json.loads(json.dumps(full.to_json())) == {
        "path": "a.b", "role": "router", "claims": ["y", "z"], "skip": "tied", "nbytes": 12,
    }  # fmt: skip
    assert Site("").to_json()["path"] == ""
    assert Site("").to_json() == {"path": "", "role": "unknown", "whole": True}


def test_skips_are_gathered_by_reason_in_the_order_met() -> None:
    sites = [Site("a", skip="tied"), Site("b"), Site("c", skip="small"), Site("d", skip="tied")]
    assert [skips.to_json() for skips in skips_by_reason(sites)] == [
        {"reason": "tied", "count": 2, "paths": ["a", "d"]},
        {"reason": "small", "count": 1, "paths": ["c"]},
    ]
    assert skips_by_reason(()) == ()
